"""Memory of the CUDA device that this process uses: the most that torch's allocator held, and a limit for it.

Torch keeps one peak per process, and the clock of a trial begins it anew several times. ``reset_peak`` does that
without losing the peak of the whole trial, reference models and evaluation included.
"""

from __future__ import annotations

import torch

CONTEXT_BYTES = 2**29  # what CUDA itself takes for a process, until it was measured; torch's limit does not count it


class _Peak:
    reserved = 0


def begin() -> None:
    """Forget the peak so far: a trial begins."""
    torch.cuda.reset_peak_memory_stats()
    _Peak.reserved = 0


def reset_peak() -> None:
    """Begin torch's own peaks anew."""
    _Peak.reserved = most_reserved()
    torch.cuda.reset_peak_memory_stats()


def most_reserved() -> int:
    """Most bytes that torch's allocator has held since ``begin``."""
    return max(_Peak.reserved, torch.cuda.max_memory_reserved())


def context_bytes() -> int:
    """Bytes in use on the device that are not the allocator's: CUDA's context, as long as nobody else is there."""
    free, total = torch.cuda.mem_get_info()
    return max(0, total - free - torch.cuda.memory_reserved())


def limit_memory(share: float, context: int = CONTEXT_BYTES) -> None:
    """Hold this process to ``share`` of its device, CUDA's own ``context`` bytes included. Past it, torch raises its
    ``OutOfMemoryError``."""
    device = torch.cuda.current_device()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(allocator_fraction(share, context, total), device)


def allocator_fraction(share: float, context: int, total: int) -> float:
    """The fraction of a device of ``total`` bytes that torch's allocator may take within ``share``. Where CUDA itself
    would eat a share up (one that a spec gave: a measured one has room for both), half of it is left."""
    left = share - context / total
    if share >= 1.0:
        return 1.0
    return left if left > 0 else share / 2
