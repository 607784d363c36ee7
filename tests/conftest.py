"""One thread per test process: toys are too small for more, and timings stay comparable."""

import torch

torch.set_num_threads(1)
