"""Readers of other annotation formats, one module for each.

In: label files and a folder of images. Out: a `Labelled` for each image that can be used, and a `Reject` for each
record that cannot. A record that is refused loses nothing else.
"""
