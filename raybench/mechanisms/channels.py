"""Channels of a network: their mean activations, and the slices of weights that make them.

A channel is one filter of a convolution or one output of a linear layer; its slice is that row of the weight and of
the bias. Layers go by their qualified name, so that two layers of one shape are never taken for each other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from raybench.data import Batch
from raybench.training import Loss

IMAGES_A_PASS = 512
Channel = tuple[str, int]  # qualified name of the layer, number of the output


@contextlib.contextmanager
def watch_channels(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Inside, each forward pass leaves layer name -> [n, outputs]: what the layer gives before any non-linearity,
    averaged over positions. Layers stand in the order in which they ran; a later pass overwrites."""
    found: dict[str, Tensor] = {}
    handles = []
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):

            def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
                values = output.detach()
                if isinstance(module, nn.Conv2d):
                    values = values.flatten(2).mean(2)
                elif values.dim() > 2:  # tokens
                    values = values.flatten(1, -2).mean(1)
                found[name] = values

            handles.append(layer.register_forward_hook(keep))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def channels_of(found: Mapping[str, Tensor]) -> tuple[Tensor, list[Channel]]:
    """What ``watch_channels`` found as columns [n, Q], and which channel each column is."""
    channels = [(name, index) for name, values in found.items() for index in range(values.shape[1])]
    return torch.cat(list(found.values()), dim=1), channels


@torch.no_grad()
def noisy_responses(
    model: nn.Module, loss: Loss, batch: Batch, copies: int, noise: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, list[Channel]]:
    """How channels and loss respond to Gaussian noise of deviation ``noise`` on the images of ``batch``.

    Returns columns [copies, Q] and losses [copies], both means over the batch, and the channels of the columns.
    Modes stay. Cost: copies x |batch| forward passes.
    """
    images, labels = batch
    size, a_pass = len(labels), max(1, IMAGES_A_PASS // len(labels))
    means, losses, channels = [], [], []  # type: list[Tensor], list[Tensor], list[Channel]
    for start in range(0, copies, a_pass):
        count = min(a_pass, copies - start)
        repeated = images.repeat(count, *[1] * (images.dim() - 1))
        drawn = torch.randn(repeated.shape, generator=generator, device=images.device)
        with watch_channels(model) as found:
            value = loss(model, (repeated + noise * drawn, labels.repeat(count)))
        columns, channels = channels_of(found)
        means.append(columns.view(count, size, -1).mean(1))
        losses.append(value.view(count, size).mean(1))
    return torch.cat(means), torch.cat(losses), channels


def gather(tensors: Mapping[str, Tensor], channels: Sequence[Channel]) -> Tensor:
    """The slices of ``channels`` out of ``tensors`` (by parameter name: weights, gradients), float64 [d_S]."""
    return torch.cat([tensors[name][index].detach().reshape(-1).double() for name, index in _rows(tensors, channels)])


@torch.no_grad()
def scatter(model: nn.Module, channels: Sequence[Channel], values: Tensor) -> None:
    """Write ``values`` [d_S], in the order of ``gather``, into the parameters of ``model``."""
    parameters = dict(model.named_parameters())
    start = 0
    for name, index in _rows(parameters, channels):
        row = parameters[name][index]
        row.copy_(values[start : start + row.numel()].view_as(row))
        start += row.numel()


def _rows(tensors: Mapping[str, Tensor], channels: Sequence[Channel]) -> list[tuple[str, int]]:
    return [
        (f"{layer}.{part}", index)
        for layer, index in channels
        for part in ("weight", "bias")
        if f"{layer}.{part}" in tensors
    ]
