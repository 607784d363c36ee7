"""Selective synaptic dampening: shrink the weights that matter much more to D_f than to all training data.

Foster, Schoepf and Brintrup 2024 (arXiv:2308.07707): with importances I_f and I_D, both of the model as it
is,

    selected: I_f > alpha I_D        beta = min(lambda I_D / I_f, 1)        w <- beta w
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from raybench.data import Batch, Split
from raybench.fisher import LossFunction, fisher_of_batches
from raybench.sample_gradients import Power
from raybench.task import UnlearningTask

Tensors = Mapping[str, Tensor]
SAMPLES_A_PASS = 64  # of per-sample importances, which do not depend on it


class Importances(Protocol):
    """How the importances are measured; see ``raybench.methods.ssd.SsdHparams``."""

    @property
    def fisher(self) -> Literal["sample", "batch"]: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def order(self) -> Literal["shuffled", "by_class"]: ...


class Dampening(Importances, Protocol):
    """The settings of a whole run."""

    @property
    def alpha(self) -> float: ...
    @property
    def dampening(self) -> float: ...


def check_settings(hp: Dampening) -> None:
    """``ValueError`` in one line for a negative alpha or lambda, and for empty batches."""
    if not (hp.alpha >= 0.0 and hp.dampening >= 0.0):
        raise ValueError(f"alpha and dampening must not be negative, got {hp.alpha} and {hp.dampening}")
    if hp.batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {hp.batch_size}")


def dampen_forget_set(task: UnlearningTask, hp: Dampening, loss: LossFunction, power: Power) -> nn.Module:
    """Dampen ``task.model`` by the importances of D_f against those of D = D_f and D_r.

    The importances are a ``once`` value. Reports ``selected`` (share of the entries) and ``alpha_bound`` = N / N_f.
    Cost: N_f + N sample passes. Batch-norm buffers are read and stay.
    """
    forget, whole = measured(task, hp, loss, power)
    share = dampen(task.model, forget, whole, hp.alpha, hp.dampening)
    count = len(task.forget)
    task.report({"selected": share, "alpha_bound": (count + len(task.retain)) / count})
    return task.model


@torch.no_grad()
def dampen(model: nn.Module, forget: Tensors, whole: Tensors, alpha: float, dampening: float) -> float:
    """Shrink the entries of ``model`` with I_f > alpha I_D by beta; the share of entries that were selected.

    ``forget`` and ``whole`` are I_f and I_D: parameter name -> tensor. A selected entry with I_D = 0 becomes 0;
    one with I_f = I_D = 0 is not selected.
    """
    selected = entries = 0
    for name, p in model.named_parameters():
        mine, all_of_it = forget[name], whole[name]
        chosen = mine > alpha * all_of_it  # inf * 0 is not a number, which nothing exceeds
        beta = (dampening * all_of_it / mine).clamp(max=1.0)
        p.copy_(torch.where(chosen, beta * p, p))
        selected += int(chosen.sum())
        entries += p.numel()
    return selected / entries


def measured(task: UnlearningTask, hp: Importances, loss: LossFunction, power: Power) -> tuple[Tensors, Tensors]:
    """I_f and I_D of the original model: mean over samples, or over batches of ``batch_size``, of |gradient|^power."""

    def compute(generator: torch.Generator) -> Tensors:
        found = {}
        for part, batches in (("forget", _batches(task.forget, hp)), ("whole", _whole(task, hp, generator))):
            mode: Literal["per_sample", "per_batch"] = "per_sample" if hp.fisher == "sample" else "per_batch"
            importance = fisher_of_batches(task.model, batches, mode=mode, loss=loss, power=power)
            found.update({f"{part}/{name}": value for name, value in importance.items()})
        return found

    # What a per-sample importance does not depend on is left out of its key.
    batched = {"batch_size": hp.batch_size, "order": hp.order} if hp.fisher == "batch" else {}
    both = task.once("importances", compute, fisher=hp.fisher, **batched)
    names = [name for name, _ in task.model.named_parameters()]
    return {n: both[f"forget/{n}"] for n in names}, {n: both[f"whole/{n}"] for n in names}


def _batches(split: Split, hp: Importances, shuffle: bool = False) -> Iterator[Batch]:
    return split.batches(hp.batch_size if hp.fisher == "batch" else SAMPLES_A_PASS, shuffle=shuffle)


def _whole(task: UnlearningTask, hp: Importances, generator: torch.Generator) -> Iterator[Batch]:
    """Batches of D, in random order or class by class."""
    everything = task.forget.joined(task.retain)
    if hp.order == "by_class":
        return _batches(everything.subset(everything.targets.argsort(stable=True)), hp)
    return _batches(everything.bound(generator, everything.tick), hp, shuffle=hp.fisher == "batch")
