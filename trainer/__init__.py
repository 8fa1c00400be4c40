"""The PyTorch side: chips become a trained detector, and whole images become detections.

In: what `pipeline` wrote, and settings. Out: checkpoints, detections and scores. It imports `pipeline` (all rooms but
`commands`, `insight` and `cli`, which `trainer/cli.py` alone needs) and `schemas`.
"""
