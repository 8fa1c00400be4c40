"""From a batch to its losses, and from gradients to weights.

In: a batch and a network. Out: labels, targets, losses and the optimiser. It imports `loading` (the batch),
`model` and `schemas`.
"""
