"""RoI max pooling (RegionRoiPool)."""
