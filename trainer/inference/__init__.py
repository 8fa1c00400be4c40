"""A network over the views of whole images.

In: a checkpoint and images. Out: detections per image, or the proposals of its RPN. It imports `runtime`, `model`,
`pipeline` (its pyramid merges the views) and `schemas`; no loader, no targets, no optimiser.
"""
