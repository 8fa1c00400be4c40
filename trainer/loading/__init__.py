"""Shards to batches, in an exact order that any number of ranks shares.

In: a chip data set. Out: batches on the host, and the place in the epoch to resume from. It imports `pipeline` and
`schemas`; it knows no network.
"""
