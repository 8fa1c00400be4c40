"""What a process needs around a network: its rank, its weights and its checkpoints.

In: environment, files and settings. Out: ranks that agree, networks with weights. It imports `model`, `pipeline` and
`schemas`.
"""
