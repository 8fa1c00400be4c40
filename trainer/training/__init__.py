"""A training run, from settings to checkpoints.

In: a chip data set and settings. Out: a folder with checkpoints, a log and pictures. The top room of the package: it
may import every other one but `trainer.cli`.
"""
