"""Image files, their pixels, and the JPEG bytes of a chip.

In: a folder, the names and sizes of images, a window and a scale. Out: decoded images and encoded chips, or the reason
why an image is refused. It imports `planning`, `coco`, `engines`, `storage` and `schemas`.
"""
