"""The CPU side: an annotation file and images become a data set of chips, on processes or a cluster.

In: COCO JSON, image files and settings. Out: shards, manifests and the ledger. It imports `schemas` and no torch.
"""

__version__ = "0.1.0"
