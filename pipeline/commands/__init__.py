"""The data commands, one module each: check, chips, negatives and verify.

In: paths and settings. Out: a finished part of a data set, and a report. It may import every other room of the package
but `insight`, `exchange` and `cli`.
"""
