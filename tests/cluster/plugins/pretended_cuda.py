"""Plug-in module for the cluster tests: in Ray's workers, a CPU that passes for a CUDA device.

Trials run on the CPU under a plan for CUDA, and each seems to have held one GiB of its device.
"""

from __future__ import annotations

import ray
import torch

from raybench import trial
from raybench.workshop import Workshop

RESERVED = 2**30
CONTEXT = 2**28

if ray._private.worker.global_worker.mode == ray.WORKER_MODE:  # never in the process of the tests
    Workshop.device = lambda self, device_type: torch.device("cpu")
    trial.begin = lambda: None
    trial.most_reserved = lambda: RESERVED
    trial.context_bytes = lambda: CONTEXT
