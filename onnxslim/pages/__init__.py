"""Pages of reports for people: one document of blocks, written as HTML or Markdown.

A page is made from the JSON of a report alone, which it holds. Each figure of the JSON carries its
place there, so that a page can be held against what it was made from.

blocks        what pages consist of: figures, grids, charts, code
cursor        a value of the JSON with its place
words         figures in the words of all pages
drawing       SVG, piece by piece
charts        charts of the figures of a report
graph_layout  where the boxes of a graph stand
graph_chart   a picture of a graph
run_page      the page of one run
detail_parts  its parts on layers, samples, energy and graphs
tuning_parts  its parts on a search
other_pages   pages of bench, compare, sensitivity and exits
report_page   the page of any report, or of several side by side
markdown      a page as Markdown
html          a page as HTML
formats       the files that --report writes, by suffix
"""
