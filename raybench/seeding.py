"""Seeds and content hashes: everything random comes from an explicit generator derived here."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


_PLAIN = (str, int, bool, type(None))


def canonical(value: Any) -> Any:
    """``value`` as plain JSON types with one spelling: dataclasses to dicts, tuples to lists, sorted sets."""
    if type(value) in _PLAIN:  # most are: a plan of 100,000 trials asks millions of times
        return value
    if type(value) is dict:
        return {str(k): canonical(v) for k, v in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: canonical(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): canonical(v) for k, v in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(canonical(v) for v in value)
    if isinstance(value, list | tuple):
        return [canonical(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return value + 0.0  # -0.0 and 0.0 are one value
    return value


def to_json(value: Any) -> str:
    """Canonical JSON: sorted keys, no spaces, ``repr`` floats."""
    return json.dumps(canonical(value), sort_keys=True, separators=(",", ":"))


def content_hash(value: Any, length: int = 20) -> str:
    """Hex digest of the canonical JSON of ``value``."""
    return text_hash(to_json(value), length)


def text_hash(text: str, length: int = 20) -> str:
    """Hex digest of canonical JSON that is there already."""
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def derive_seed(*parts: Any) -> int:
    """A 63-bit seed that depends on every part and on nothing else."""
    return int.from_bytes(hashlib.sha256(to_json(list(parts)).encode()).digest()[:8], "big") >> 1


def torch_generator(*parts: Any, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator seeded by ``derive_seed(*parts)``."""
    import torch  # seconds when cold: who only reads a leaderboard does not pay

    return torch.Generator(device=device).manual_seed(derive_seed(*parts))


def numpy_generator(*parts: Any) -> np.random.Generator:
    """A NumPy generator seeded by ``derive_seed(*parts)``."""
    return np.random.default_rng(derive_seed(*parts))


@contextlib.contextmanager
def seeded_globals(seed: int) -> Iterator[None]:
    """Code that can only draw from torch's global state (weight initialisers, dropout) draws from ``seed``;
    the state is put back afterwards."""
    import torch

    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
