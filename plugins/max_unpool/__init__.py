"""Max pooling with the place of each maximum (RegionMaxPool), and unpooling back to there (RegionMaxUnpool)."""
