"""The ledger: what became of every image and every box of the annotation file.

In: the plans of all shards. Out: images.parquet, annotations.parquet, categories.parquet and rejects.parquet, and the
counts of run.json; and the same read back for mining and training.
"""
