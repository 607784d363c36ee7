"""Shared by the dataset tests: the folder of real data, where there is one, and small idx files."""

from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import KMNIST, MNIST, FashionMNIST


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image cache of the test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "raybench" / "images"


@pytest.fixture
def data_root() -> Path:
    """The folder that RAYBENCH_DATA names."""
    folder = os.environ.get("RAYBENCH_DATA")
    if not folder:
        pytest.skip("real data needed: set RAYBENCH_DATA to a folder with MNIST/raw and CIFAR10")
    return Path(folder)


def idx_bytes(array: np.ndarray) -> bytes:
    """An idx file of a uint8 array, written here from the format's description."""
    header = bytes((0, 0, 8, array.ndim)) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def tiny_family(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, np.ndarray]]:
    """Writes 20 + 10 random images as .gz files into a folder and lets torchvision's classes expect them."""

    def write(folder: Path, seed: int = 0) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        folder.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, np.ndarray] = {}
        resources = []
        for part, size in (("train", 20), ("t10k", 10)):
            images = rng.integers(0, 256, (size, 28, 28), dtype=np.uint8)
            labels = np.arange(size, dtype=np.uint8) % 10
            for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
                name = f"{part}-{kind}-ubyte.gz"
                content = gzip.compress(idx_bytes(array), mtime=0)
                (folder / name).write_bytes(content)
                resources.append((name, hashlib.md5(content).hexdigest()))
                arrays[name] = array
        for family in (MNIST, FashionMNIST, KMNIST):
            monkeypatch.setattr(family, "resources", resources)
            monkeypatch.setattr(family, "mirrors", [f"{folder.as_uri()}/"])
        return arrays

    return write
