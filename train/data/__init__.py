"""Annotated images: VOC and COCO folders, CamVid-style and Pascal-style label maps, and `shapes`, made on the fly."""

from .errors import DataError
from .layout import open_data, open_semantic
from .sample import DetectionData, Sample
from .semantic import VOID, SemanticData, SemanticSample
from .shapes import write_images

__all__ = [
    "VOID",
    "DataError",
    "DetectionData",
    "Sample",
    "SemanticData",
    "SemanticSample",
    "open_data",
    "open_semantic",
    "write_images",
]
