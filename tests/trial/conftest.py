"""Fixtures of the tests of ``run_trial``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from raybench.registry import (
    FORGET,
    METHODS,
    RETAIN,
    MethodEntry,
)
from raybench.spec import REFERENCE
from raybench.trial import run_trial
from raybench.workshop import Workshop
from tests.trial.parts import Amount, Method, Register, shop_at, trial_of


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose store holds the references of the usual problem."""
    folder = tmp_path_factory.mktemp("warm")
    shop = shop_at(folder)
    run_trial(trial_of("original", REFERENCE), {}, shop)
    return folder


@pytest.fixture
def shop(warm: Path) -> Workshop:
    return shop_at(warm)


@pytest.fixture
def method(monkeypatch: pytest.MonkeyPatch) -> Register:
    """Registers a function as method ``toy``, for this test only."""
    METHODS.names()

    def register(fn: Method, name: str = "toy", **metadata: Any) -> str:
        options = {"needs": frozenset({FORGET, RETAIN}), "hparams": Amount, **metadata}
        monkeypatch.setitem(METHODS._entries, name, MethodEntry(name, fn, name, **options))
        return name

    return register


@pytest.fixture(autouse=True)
def global_state_is_put_back() -> Iterator[None]:
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)
