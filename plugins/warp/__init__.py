"""Warping regions of images to one size (RegionWarp)."""
