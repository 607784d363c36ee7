"""Freed memory that stays: counted in page faults, in a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from raybench.heap import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(2**24)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
without = faults()
told = keep_freed_memory()
for _ in range(4):  # until the heap has grown to what is needed
    faults()
print(told, without, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_the_next_tensor_takes_the_pages_of_the_last() -> None:
    found = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    told, without, kept = found.stdout.split()
    assert told == "True"
    assert int(kept) < 100
    assert int(without) > 10_000
