"""Figures for people and programs.

units    bytes, counts and times in words
tables   tables on paper of a known width
text     a report as text
json     a report as JSON
formats  the files that --report writes, by suffix
"""
