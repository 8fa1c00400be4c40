"""What a process needs around a network: its rank, its precision, weights, and checkpoints.

In: environment, files and settings. Out: ranks that agree, networks with weights. It imports `model`, `loading`
(the place in an epoch), `pipeline` and `schemas`.
"""
