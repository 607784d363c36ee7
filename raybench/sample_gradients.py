"""Per-sample gradients of layers from their inputs a and the gradients g at their outputs, squared and summed.

linear, one vector per sample      sum_n (g_n a_n^T)^2 = (g^2)^T (a^2)
linear on sequences, conv          per-sample products in slices of bounded memory, squared, summed
batch norm in evaluation mode      scale: per-sample sums of g * xhat, shift: of g
layer norm, group norm             the same, xhat normalised over the sample
embedding                          per sample and row, the sum of g over the places that look the row up
parameter added to every sample    the sum of g over the sample
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn import functional as F

Power = Literal[1, 2]
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
FAST = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.GroupNorm, nn.Embedding, *BATCH_NORMS)
SPREADING = ("AddBackward0", "MulBackward0", "ExpandBackward0")
CACHE_ELEMENTS = 2**20  # patches made at once on a CPU: 4 MiB in fp32 are still in its cache when they are multiplied


def plain(layer: nn.Module) -> bool:
    """A layer of a type whose per-sample gradients are written below, without re-parametrisation."""
    if type(layer) not in FAST or not set(layer._parameters) <= {"weight", "bias"} or "forward" in layer.__dict__:
        return False
    if isinstance(layer, nn.Conv2d):
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    if isinstance(layer, nn.Embedding):
        return layer.max_norm is None and not layer.scale_grad_by_freq and not layer.sparse
    return any(True for _ in layer.parameters())


def raised(values: Tensor, power: Power) -> Tensor:
    """Squares, or magnitudes."""
    return values.square() if power == 2 else values.abs()


def spread(node: Node, p: Tensor, samples: int) -> bool:
    """Whether the operation ``node`` uses ``p`` in the same way for each of the ``samples`` rows of its result."""
    if node.name() not in SPREADING:
        return False
    shape = tuple(node._input_metadata[0].shape)
    own = _aligned(p, len(shape))
    return len(shape) > 0 and own is not None and shape[0] == samples and own[0] == 1


def factor(node: Node, p: Tensor) -> Tensor | float:
    """What the gradient at the result of ``node`` (see ``spread``) is multiplied with on its way to ``p``. To be taken
    before the backward pass, which frees it."""
    places = [child is not None and getattr(child, "variable", None) is p for child, _ in node.next_functions]
    if node.name() == "MulBackward0":
        other: Tensor = node._saved_other if places[0] else node._saved_self  # type: ignore[attr-defined]
        return other.detach()
    if node.name() == "AddBackward0" and not places[0]:
        return float(node._saved_alpha)  # type: ignore[attr-defined]
    return 1.0


def bare_gradients(p: Tensor, g: Tensor) -> Tensor:
    """Per-sample gradients [n, ...] of ``p`` from those at the result of its operation, times its ``factor``."""
    own = _aligned(p, g.ndim)
    assert own is not None
    over = [dim for dim in range(1, g.ndim) if own[dim] == 1 and g.shape[dim] > 1]
    return g.sum(over, keepdim=True) if over else g


def _aligned(p: Tensor, dims: int) -> tuple[int, ...] | None:
    """The shape of ``p`` as it is broadcast to ``dims`` dimensions."""
    return (*(1,) * (dims - p.ndim), *p.shape) if p.ndim <= dims else None


def layer_gradients(
    layer: nn.Module, a: Tensor, g: Tensor, slice_elements: int, power: Power
) -> Iterator[tuple[Tensor, Tensor]]:
    """(parameter, sum over samples of its squared gradients) from layer inputs ``a`` and output gradients ``g``."""
    if isinstance(layer, nn.Linear):
        if a.ndim == 2:
            yield layer.weight, raised(g, power).T @ raised(a, power)
        else:
            left, right = g.flatten(1, -2).transpose(1, 2), a.flatten(1, -2)
            yield layer.weight, _sum_of_squared_products(left, right, slice_elements, power)
        if layer.bias is not None:
            yield layer.bias, raised(g.flatten(1, -2).sum(1) if g.ndim > 2 else g, power).sum(0)
    elif isinstance(layer, nn.Conv2d):
        yield layer.weight, _conv_squares(layer, a, g, slice_elements, power)
        if layer.bias is not None:
            yield layer.bias, raised(_over_positions(g), power).sum(0)
    elif isinstance(layer, nn.Embedding):
        yield layer.weight, _embedding_squares(layer, a, g, power)
    elif isinstance(layer, nn.LayerNorm):
        own = len(layer.normalized_shape)
        normalised = F.layer_norm(a, layer.normalized_shape, eps=layer.eps)
        for p, values in ((layer.weight, g * normalised), (layer.bias, g)):
            if p is not None:
                yield p, raised(values.flatten(1, -own - 1).sum(1) if values.ndim > own + 1 else values, power).sum(0)
    else:
        assert isinstance(layer, nn.GroupNorm | nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
        for scale, values in ((layer.weight, g * _normalised(layer, a)), (layer.bias, g)):
            if scale is not None:
                yield scale, raised(_over_positions(values), power).sum(0)


def _normalised(layer: nn.Module, a: Tensor) -> Tensor:
    """What batch norm (in evaluation mode) and group norm scale and shift."""
    if isinstance(layer, nn.GroupNorm):
        return F.group_norm(a, layer.num_groups, eps=layer.eps)
    assert isinstance(layer, BATCH_NORMS)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    shape = (1, -1, *(1,) * (a.ndim - 2))
    return (a - layer.running_mean.view(shape)) * (layer.running_var + layer.eps).rsqrt().view(shape)


def _over_positions(x: Tensor) -> Tensor:
    """[n, c, ...] summed to [n, c]."""
    return x.flatten(2).sum(2) if x.ndim > 2 else x


def _sum_of_squared_products(left: Tensor, right: Tensor, slice_elements: int, power: Power) -> Tensor:
    """sum_n (left_n @ right_n)^2 of [n, o, l] and [n, l, i], as [o, i]."""
    total = left.new_zeros(left.shape[1], right.shape[2])
    step = max(1, slice_elements // total.numel())
    for some, their in zip(left.split(step), right.split(step), strict=True):
        total += raised(torch.bmm(some, their), power).sum(0)
    return total


def _embedding_squares(layer: nn.Embedding, ids: Tensor, g: Tensor, power: Power) -> Tensor:
    """As [rows, d]: a sample's gradient of a row is the sum of g [n, ..., d] over its places with that id."""
    n, rows = len(ids), layer.num_embeddings
    keys = (ids.reshape(n, -1) + rows * torch.arange(n, device=ids.device)[:, None]).flatten()
    pairs, place = keys.unique(return_inverse=True)  # (sample, row) pairs that occur: memory as that of g
    sums = g.new_zeros(len(pairs), g.shape[-1]).index_add_(0, place, g.reshape(-1, g.shape[-1]))
    total = torch.zeros_like(layer.weight, requires_grad=False).index_add_(0, pairs % rows, raised(sums, power))
    if layer.padding_idx is not None:
        total[layer.padding_idx] = 0.0
    return total


def _conv_squares(layer: nn.Conv2d, a: Tensor, g: Tensor, slice_elements: int, power: Power) -> Tensor:
    """Per-sample weight gradients are products of output gradients [n, o, l] with patches [n, l, i kh kw], one
    per group of channels."""
    groups, width = layer.groups, layer.weight[0].numel()
    per_sample = a.shape[1] * layer.weight[0, 0].numel() * g.shape[2] * g.shape[3]
    step = max(1, slice_elements // max(layer.weight.numel(), per_sample))
    # The products of a slice are summed at once, whatever the patches' slices: the same bits with any cache.
    inner = step if a.is_cuda else max(1, CACHE_ELEMENTS // per_sample)
    total = torch.zeros_like(layer.weight, requires_grad=False)
    for some, their in zip(a.split(step), g.split(step), strict=True):
        n = len(some)
        products = their.new_empty(n * groups, layer.out_channels // groups, width)
        for start in range(0, n, inner):
            patches = _patches(layer, some[start : start + inner], their.shape[2:]).flatten(0, 1)
            outputs = their[start : start + inner].reshape(len(patches), -1, patches.shape[2])
            out = products[start * groups : start * groups + len(patches)]
            torch.bmm(outputs, patches.transpose(1, 2), out=out)
        total += raised(products, power).view(n, *total.shape).sum(0)
    return total


def _patches(layer: nn.Conv2d, a: Tensor, sides: torch.Size) -> Tensor:
    """The inputs that each output position sees: [n, groups, channels of a group * kh * kw, positions].

    As ``F.unfold``, but as a copy of a strided view, which is two to four times as fast on a CPU and has no kernel of
    its own on a GPU.
    """
    (height, width), (down, right) = cast(tuple[int, int], layer.kernel_size), cast(tuple[int, int], layer.padding)
    if down or right:
        a = F.pad(a, (right, right, down, down))
    n, channels, *_ = a.shape
    image, plane, row, column = a.stride()
    rows, columns = (row * layer.dilation[0], column * layer.dilation[1])
    view = a.as_strided(
        (n, channels, height, width, *sides),
        (image, plane, rows, columns, row * layer.stride[0], column * layer.stride[1]),
        a.storage_offset(),
    )
    return view.reshape(n, layer.groups, -1, sides[0] * sides[1])
