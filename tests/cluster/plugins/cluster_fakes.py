"""Plug-in module for the cluster tests: methods that sleep, raise or kill their process.

Workers import it by name (``plugins: [cluster_fakes]``), as they would a third party's.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from optuna.distributions import FloatDistribution
from torch import nn

from raybench.registry import METHODS, MODELS, RETAIN
from raybench.space import nuisance


@dataclass(frozen=True)
class SleepHparams:
    seconds: float = 1.0
    """How long."""
    folder: str = ""
    """Where trials sign in, when they wait for each other."""
    gather: int = 0
    """Sleep until so many trials have signed in: they run at once, however slow the machine starts them."""


@METHODS.register("sleeper", hparams=SleepHparams, needs={RETAIN}, identity=True)
def sleeper(task, hp: SleepHparams) -> nn.Module:
    """Do nothing for a while."""
    if hp.gather:
        (Path(hp.folder) / f"{os.getpid()}-{hp.seconds}").touch()
        deadline = time.monotonic() + 120
        while len(list(Path(hp.folder).iterdir())) < hp.gather:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{hp.gather} trials never ran at once")
            time.sleep(0.02)
    time.sleep(hp.seconds)
    return task.model


@dataclass(frozen=True)
class NapHparams:
    seconds: Annotated[float, nuisance(FloatDistribution(1.0, 3.0))] = 2.0
    """How long; searched."""


@METHODS.register("napper", hparams=NapHparams, needs={RETAIN}, identity=True)
def napper(task, hp: NapHparams) -> nn.Module:
    """Do nothing for a while that a search decides."""
    time.sleep(hp.seconds)
    return task.model


@dataclass(frozen=True)
class KillHparams:
    strength: Annotated[float, nuisance(FloatDistribution(0.0, 1.0))] = 0.5
    """Searched, so that there is a search."""
    flag: str = ""
    """A file: while it is missing the process creates it and dies. Empty: it always dies."""


@METHODS.register("killer", hparams=KillHparams, needs={RETAIN}, identity=True)
def killer(task, hp: KillHparams) -> nn.Module:
    """Die as a process does that the kernel kills."""
    if not hp.flag or not Path(hp.flag).exists():
        if hp.flag:
            Path(hp.flag).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return task.model


@dataclass(frozen=True)
class RaiseHparams:
    strength: Annotated[float, nuisance(FloatDistribution(0.0, 1.0))] = 0.5
    """Searched, so that there is a search."""


@METHODS.register("raiser", hparams=RaiseHparams, needs={RETAIN}, identity=True)
def raiser(task, hp: RaiseHparams) -> nn.Module:
    """Raise what nobody expects."""
    raise ZeroDivisionError("a bug in a method")


@dataclass(frozen=True)
class HungryHparams:
    strength: Annotated[float, nuisance(FloatDistribution(0.0, 1.0))] = 0.5
    """Searched, so that there is a search."""
    folder: str = ""
    """Trials sign in here by strength; one that did before has memory enough. Empty: there never is enough."""


@METHODS.register("hungry", hparams=HungryHparams, needs={RETAIN}, identity=True)
def hungry(task, hp: HungryHparams) -> nn.Module:
    """Ask for more memory than there is, really."""
    seen = Path(hp.folder) / f"{hp.strength}" if hp.folder else None
    if seen is None or not seen.exists():
        if seen is not None:
            seen.touch()
        torch.empty(2**52)
    return task.model


@dataclass(frozen=True)
class HangHparams:
    strength: Annotated[float, nuisance(FloatDistribution(0.0, 1.0))] = 0.5
    """Searched, so that there is a search."""
    foreign: bool = False
    """Hang inside the C library, where no signal of Python's arrives."""


@METHODS.register("hanger", hparams=HangHparams, needs={RETAIN}, identity=True)
def hanger(task, hp: HangHparams) -> nn.Module:
    """Wait for ever, and never ask for data."""
    if hp.foreign:
        library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(128)
        library.pthread_mutex_lock(mutex)
        library.pthread_mutex_lock(mutex)
    while True:
        time.sleep(3600.0)


@MODELS.register("mortal")
def mortal(num_classes: int, input_shape: tuple[int, int, int], base: str, folder: str, after: int) -> nn.Module:
    """The model ``base``. The first process that trains it for more than ``after`` batches dies, once for all; each
    leaves a file in ``folder`` with as many bytes as it has begun batches."""
    network = MODELS[base].fn(num_classes, input_shape)
    calls = 0

    def count(module: nn.Module, inputs: object) -> None:
        nonlocal calls
        if not module.training:
            return
        calls += 1
        (Path(folder) / f"calls-{os.getpid()}").write_bytes(bytes(calls))
        if calls > after:
            try:
                (Path(folder) / "killed").touch(exist_ok=False)
            except FileExistsError:
                return
            os.kill(os.getpid(), signal.SIGKILL)

    network.register_forward_pre_hook(count)
    return network
