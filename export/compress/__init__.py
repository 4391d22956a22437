"""Compression: transforms of modules, one per file."""

from .data_aware import DataAwareSVD
from .ranks import Energy, Ratio
from .spatial import SpatialSVD
from .splitting import compress_
from .truncated_svd import TruncatedSVD

__all__ = ["DataAwareSVD", "Energy", "Ratio", "SpatialSVD", "TruncatedSVD", "compress_"]
