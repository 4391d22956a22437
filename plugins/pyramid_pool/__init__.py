"""Spatial pyramid pooling of regions (RegionPyramidPool)."""
