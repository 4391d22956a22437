"""Greedy merging of the boxes that windows predict (RegionMerge)."""
