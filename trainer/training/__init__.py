"""A training run, from settings to checkpoints.

In: a chip data set and settings. Out: a folder with checkpoints, a log and pictures. It may import every
other room of the package but `insight` and `cli`.
"""
