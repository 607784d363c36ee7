"""Wrong labels on purpose: the targets of methods that teach a model other answers for what it should forget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from raybench.mechanisms.mixing import Passes
from raybench.task import UnlearningTask

Variant = Literal["mix", "sequential", "forget_only"]


def random_labels(
    labels: Tensor,
    num_classes: int,
    generator: torch.Generator,
    *,
    exclusive: bool = True,
    barred: Sequence[int] = (),
) -> Tensor:
    """Labels [n] drawn uniformly from the classes outside ``barred`` and, if ``exclusive``, other than ``labels`` [n].

    Not exclusive, a share of 1/K keeps its true label. ``ValueError`` where no class is left to draw.
    """
    weights = torch.ones(len(labels), num_classes, device=labels.device)
    weights[:, list(barred)] = 0.0
    if exclusive:
        weights.scatter_(1, labels[:, None], 0.0)
    if len(labels) == 0:
        return labels.clone()
    if not bool((weights.sum(1) > 0.0).all()):
        raise ValueError(f"random labels must have a class to be drawn from, got {num_classes} classes and {barred=}")
    return torch.multinomial(weights, 1, generator=generator).squeeze(1)


def relabelled_passes(
    task: UnlearningTask, variant: Variant, *, redraw: bool, exclusive: bool = True, barred: Sequence[int] = ()
) -> Passes:
    """Passes over D_f with random labels: shuffled among D_r (``mix``), before D_r (``sequential``), or alone.

    ``redraw`` draws new labels for each pass; otherwise they are drawn here, once. The rest as in ``random_labels``.
    """
    forget = task.forget

    def draw() -> Tensor:
        return random_labels(forget.targets, task.num_classes, task.generator, exclusive=exclusive, barred=barred)

    fixed = None if redraw else draw()

    def labels() -> Tensor:
        return draw() if fixed is None else fixed

    if variant == "forget_only":
        return Passes((len(forget),), lambda: [forget.relabelled(labels())])
    retain = task.retain
    if variant == "sequential":
        return Passes((len(forget), len(retain)), lambda: [forget.relabelled(labels()), retain])
    whole, kept = forget.joined(retain), retain.targets
    return Passes((len(whole),), lambda: [whole.relabelled(torch.cat([labels(), kept]))])
