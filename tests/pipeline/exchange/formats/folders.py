"""Folders of small images and label files, as other programs leave them."""

from pathlib import Path

from PIL import Image

from pipeline.exchange.formats.labels import Images


def image_folder(root: Path, *names: str, size: tuple[int, int] = (200, 100)) -> Images:
    """Write plain images of one size, 200x100, and return what readers take."""
    root.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", size).save(root / name)
    return Images(root)


def label_folder(root: Path, **texts: str) -> Path:
    """Write label files; a name's last underscore stands for the dot of its suffix."""
    root.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (root / ".".join(name.rsplit("_", 1))).write_text(text)
    return root
