"""RoIAlign over one or more feature levels (RegionRoiAlign)."""
