"""The data commands, one module each: check, chips, negatives and verify.

In: paths and settings. Out: a finished part of a data set, and a report. This is the top room of the package: it may
import every other one but `insight`, `exchange` and `cli`.
"""
