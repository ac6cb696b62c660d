"""Figures as text for people, and as data for programs.

printable  what of a text may reach a terminal
units      bytes, counts and times as words
timing     two models timed in turn, as words
tables     tables for a console, pipe or file of a given width
text       a report as text
json_form  the keys of a report as JSON, and what each holds
json       a report as JSON
formats    files by suffix: which function writes which
"""
