"""Class-aware greedy NMS (RegionNms)."""
