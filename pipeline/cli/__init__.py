"""The command line: options, and one click command for each Python function of the rooms below.

In: words typed by the user. Out: a call of a function that is imported when its command is called, and what it
returned as lines of text. Commands of other packages are found by the entry-point group `sniper.commands`. This is the
top room of the package; `trainer/cli.py` takes the shared options from it.
"""
