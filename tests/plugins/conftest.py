"""Two cores are shared: one thread for each library."""

import torch

torch.set_num_threads(1)
