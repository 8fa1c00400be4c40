"""Runs a function over tasks: on processes of this machine or on a Ray cluster.

In: a function and named items of work. Out: results in the order in which they finish. Knows nothing of chips or
files; it imports `schemas` alone.
"""
