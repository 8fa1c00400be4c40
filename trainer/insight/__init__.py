"""A training run made visible: what it learnt, how well it scores, and what it gets wrong.

In: the log of a run, and detections with the images and boxes that they are scored against. Out: numbers and a page.
It imports `evaluation`, `inference`, `runtime`, `pipeline` and `schemas`, and writes nothing into a run.
"""
