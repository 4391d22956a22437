"""The resize of photos onto the canvas; works on the CPU only."""
