"""Figures as text for people, and as data for programs.

printable  what of a text may reach a terminal
units      bytes, counts and times as words
timing     two models timed in turn, as words
tables     tables for a console, pipe or file of a given width
text       a report as text
json_form  the keys of a report as JSON, and what each holds
json       a report as JSON
junit       what held and what did not, for CI
provenance  where a file comes from, as an in-toto statement
model_card  a part of a model card
beside      files of a run beside its report, by option
formats    files by suffix: which function writes which
"""
