"""The network: from pixels to boxes.

In: chips or whole images as tensors. Out: features, proposals and detections. It knows no data set, no loss and no
checkpoint, and imports `schemas` and, of `pipeline.pyramid`, the NMS of large views and the grid of focus maps.
"""

from trainer.model.detector import Detector, RawDetections, predict, predict_and_focus, propose

__all__ = ["RawDetections", "Detector", "predict", "predict_and_focus", "propose"]
