"""Annotated images: VOC and COCO folders, and `shapes`, made on the fly."""

from .errors import DataError
from .layout import open_data
from .sample import DetectionData, Sample
from .shapes import write_images

__all__ = ["DataError", "DetectionData", "Sample", "open_data", "write_images"]
