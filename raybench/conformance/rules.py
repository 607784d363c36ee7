"""The words of a suite: a case, a rule that is broken, a rule that does not apply here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from raybench.registry import Entry


class Broken(Exception):
    """The plug-in does not keep to a rule; the text says how."""


class NotHere(Exception):
    """The rule does not apply to this plug-in, or not on this machine; the text says why."""


@dataclass(frozen=True)
class Case:
    """One check of one plug-in: ``run()`` returns, or raises ``Broken`` or ``NotHere``."""

    check: Callable[..., None]
    arguments: tuple[Any, ...] = ()

    @property
    def rule(self) -> str:
        """The name of the check as words, with what it is about beside the plug-in."""
        about = ", ".join(map(str, self.arguments[1:]))
        return self.check.__name__.replace("_", " ") + (f" ({about})" if about else "")

    def run(self) -> None:
        """Do it."""
        self.check(*self.arguments)


def hold(rule: bool, otherwise: str) -> None:
    """``Broken`` with the text ``otherwise`` unless ``rule`` holds."""
    if not rule:
        raise Broken(otherwise)


def function_and_key_are_one_word(entry: Entry) -> None:
    """The key is the function's name (a trailing underscore where it is a word of Python), and it has a summary."""
    fn = entry.fn.__name__.rstrip("_")
    hold(fn == entry.name, f"the function must be named like the key, {entry.name!r}, got {fn!r}")
    hold(bool(entry.summary), "the function has no docstring; its first line is the summary that lists show")


def digest(value: Any) -> str:
    """Of every bit of a tensor, array, or mapping or sequence of them."""
    hashed = hashlib.sha256()
    if isinstance(value, Mapping):
        for key in sorted(value):
            hashed.update(f"{key}={digest(value[key])}".encode())
    elif isinstance(value, list | tuple):
        hashed.update(" ".join(map(digest, value)).encode())
    else:
        array = value.detach().cpu().contiguous().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        hashed.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return hashed.hexdigest()
