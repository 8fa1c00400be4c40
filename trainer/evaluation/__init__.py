"""COCO's scores of a detector, and the recall of its RPN.

In: a checkpoint, an annotation file and its images. Out: AP and AR. It imports `inference`, `runtime`, `pipeline` and
`schemas`.
"""
