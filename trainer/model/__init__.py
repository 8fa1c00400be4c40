"""The network: from pixels to boxes.

In: chips or whole images as tensors. Out: features, proposals and detections. It knows no data set, no loss and no
checkpoint, and imports `schemas` and, for the NMS of large views, `pipeline.pyramid`.
"""

from trainer.model.detector import Detector, RawDetections, predict, propose

__all__ = ["RawDetections", "Detector", "predict", "propose"]
