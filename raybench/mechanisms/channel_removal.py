"""Removal of samples from the weights of a few channels: which channels, and a Newton step on their slices.

Mehta et al. 2022 (L-CODEC), Algorithm 1 and L-FOCI (Section 4); slices as in ``raybench.mechanisms.channels``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from raybench.data import Batch
from raybench.mechanisms.channels import Channel, gather, noisy_responses
from raybench.mechanisms.foci import foci
from raybench.mechanisms.saliency import summed_gradients
from raybench.mechanisms.secant import removal_noise, secant, solve
from raybench.task import UnlearningTask

PROBE_LR = 1e-3  # step to the second point of the sample's Hessian (official code)


class Selection(Protocol):
    """How channels are selected; see ``raybench.methods.lcodec.LcodecHparams``."""

    @property
    def selection(self) -> Literal["foci", "first", "random", "one", "full"]: ...
    @property
    def perturbations(self) -> int: ...
    @property
    def noise(self) -> float: ...


class Removal(Protocol):
    """What their weights become; see there."""

    @property
    def update(self) -> Literal["sekhari", "cr", "gradient"]: ...
    @property
    def lr(self) -> float: ...
    @property
    def l2(self) -> float: ...
    @property
    def epsilon(self) -> float: ...
    @property
    def delta(self) -> float: ...


@torch.no_grad()
def selected_channels(task: UnlearningTask, hp: Selection, batch: Batch) -> list[Channel]:
    """The channels whose means the loss of noisy copies depends on (means over the samples of ``batch``).

    Cost: ``perturbations`` forward passes of the batch.
    """
    columns, losses, channels = noisy_responses(
        task.model, task.loss, batch, hp.perturbations, hp.noise, task.generator
    )
    total = len(channels)
    if hp.selection == "full":
        return channels
    if hp.selection == "one":
        return [channels[int(torch.randint(total, (1,), generator=task.generator, device=task.device))]]
    picked, _ = foci(columns, losses, only_first=hp.selection == "first")
    if hp.selection == "random":
        picked = torch.randperm(total, generator=task.generator, device=task.device)[: len(picked)].tolist()
    return [channels[index] for index in picked]


def without_samples(
    task: UnlearningTask,
    hp: Removal,
    batch: Batch,
    channels: Sequence[Channel],
    traces: Sequence[Mapping[str, Mapping[str, Tensor]]],
    n: int,
) -> Tensor:
    """The slices [d_S] of ``channels`` without the samples of ``batch``, of a model that was trained on ``n``.

    ``traces`` are the last two epochs of the training, each with its ``gradients`` and ``weights`` by parameter.
    Cost: two sample passes of the batch, one for plain ascent.
    """
    model, m = task.model, len(batch[1])
    point = gather(dict(model.named_parameters()), channels)
    gradients = summed_gradients(model, [batch], task.loss)
    here = gather(gradients, channels)
    if hp.update == "gradient":
        return point + hp.lr * here
    probe = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in probe.named_parameters():
            p.sub_(PROBE_LR * gradients[name])
    there = gather(summed_gradients(probe, [batch], task.loss), channels)
    sample = secant((here, there), (point, gather(dict(probe.named_parameters()), channels)))
    if hp.update == "cr":
        return point + solve([sample], hp.l2, here)

    def both(kind: str) -> tuple[Tensor, Tensor]:
        old, new = (gather(epoch[kind], channels) for epoch in traces)
        return old, new

    whole = secant(both("gradients"), both("weights"))
    step = solve([whole.scaled(n / (n - m)), sample.scaled(-m / (n - m))], hp.l2, m * here) / (n - m)
    std = removal_noise(n, hp.l2, hp.epsilon, hp.delta, m)
    return point + step + std * torch.randn(len(point), generator=task.generator, device=task.device)
