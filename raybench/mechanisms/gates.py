"""Label-gated channels: which channels of the last stage belong to which class (the mask of ERM-KTP)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from raybench.mechanisms.laid_out import laid_out
from raybench.task import Facts

DENSITY = 0.1  # share of open gates at which the penalty lets go
OVERLAP = 0.1  # weight of the overlap of classes


def gate_penalty(gates: Tensor) -> Tensor:
    """R = relu(|M|_1 - 0.1 K C) + 0.1 sum over a < b of <M_a, M_b>, from gates M [K channels, C classes]."""
    overlap = torch.triu(gates.T @ gates, diagonal=1).sum()
    return torch.relu(gates.abs().sum() - DENSITY * gates.numel()) + OVERLAP * overlap


@torch.no_grad()
def clip_gates(gates: Tensor) -> None:
    """In place M <- clamp(M / largest of each row, 0, 1): every channel stays wholly open for one class at least."""
    gates.div_(gates.amax(dim=1, keepdim=True)).clamp_(0.0, 1.0)


def unrelated(gates: Tensor, classes: Sequence[int], tolerance: float = 0.0) -> Tensor:
    """Bool [K]: the channels whose gates to all of ``classes`` are at most ``tolerance``."""
    return (gates[:, list(classes)] <= tolerance).all(dim=1)


@contextlib.contextmanager
def scaled_channels(stage: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Within, the output [n, K, ...] of ``stage`` is multiplied by ``held["by"]`` ([n, K] or [K]) while that is set."""
    held: dict[str, Tensor] = {}

    def scale(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if "by" not in held:
            return None
        return output * held["by"].reshape(-1, output.shape[1], *[1] * (output.ndim - 2))

    handle = stage.register_forward_hook(scale)
    try:
        yield held
    finally:
        handle.remove()


def channels_of(model: nn.Module, images: Tensor) -> int | None:
    """K, the channels of the last stage's output [n, K, h, w] (of a dense stage: its units [n, K]); None where the
    model has no such stage. In evaluation mode, one pass of ``images``."""
    stages = model.stages()  # type: ignore[operator]
    shapes: list[torch.Size] = []
    if stages:
        handle = stages[-1].register_forward_hook(lambda _, __, output: shapes.append(output.shape))
        modes = {module: module.training for module in model.modules()}
        with torch.no_grad():
            model.eval()(images)
        handle.remove()
        for module, training in modes.items():
            module.training = training
    return shapes[0][1] if shapes and len(shapes[0]) in (2, 4) else None


def no_channels(facts: Facts) -> str | None:
    """Why a problem's model has no channels to gate, or None: the ``skip`` of methods that need them.

    The registered model is built without memory to see. A model that is not registered (somebody's own) passes.
    """
    model = laid_out(facts)
    if model is None:
        return None
    found = channels_of(model, torch.zeros((2, *facts.input_shape), device="meta"))
    return f"{facts.model} has no last stage with channels to gate" if found is None else None


def over_maps(mask: Tensor, maps: Tensor) -> Tensor:
    """``mask`` [K] in a shape that multiplies maps [n, K, ...]."""
    return mask.reshape(-1, *[1] * (maps.ndim - 2))


def maps_and_features(model: nn.Module, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Of a batch of images, the maps of the last stage as they are and what the head reads from them after ``mask``."""
    maps = images
    for stage in model.stages():  # type: ignore[operator]
        maps = stage(maps)
    return maps, model.neck(maps * over_maps(mask, maps))  # type: ignore[operator]


@torch.no_grad()
def copy_masked_head(source: nn.Linear, target: nn.Linear, keep: Tensor, classes: Sequence[int]) -> None:
    """``target`` becomes ``source`` without what belongs to ``classes``, and frozen: their rows and biases are zero,
    and so are the columns of channels that ``keep`` [K] masks, where the head has a column per channel."""
    target.load_state_dict(source.state_dict())
    if target.in_features == len(keep):
        target.weight.mul_(keep)
    for p in target.parameters():
        p[list(classes)] = 0.0
        p.requires_grad_(False)
