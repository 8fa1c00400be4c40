"""CPU stages that turn COCO annotations and images into a chip data set; imports no torch."""

__version__ = "0.1.0"
