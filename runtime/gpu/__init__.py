"""Our ops as CUDA kernels: compiled on this machine, launched on addresses of the GPU, without torch."""
