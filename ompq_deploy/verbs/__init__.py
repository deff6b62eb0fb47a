"""The verbs of the command line that run a part of the line, one per file.

Several of them share `earlier.py`, which reads the files of an earlier run, and `renewal.py`, which keeps its folder in
step with what a verb writes.
"""
