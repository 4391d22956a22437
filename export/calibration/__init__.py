"""What the values of a graph span on real images, and what it costs to quantise each layer."""
