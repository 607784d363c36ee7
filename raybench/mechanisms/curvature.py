"""Curvature of the loss, layer by layer, from the inputs and the output gradients of linear and convolutional layers.

A layer is a matrix W = [weights, bias] of shape [o, d] that multiplies columns a: its input vectors, or the patches
that a convolution sees, with a 1 appended where there is a bias. S = W I is then exactly the layer's output, for I
[d, columns]. With g the gradient of a sample's loss at the layer's output,

    K-FAC     A = E_n[sum_t a a^T] [d, d],   G = E_n[mean_t g g^T] [o, o],   F = A (x) G

where n are samples and t the positions of a convolution (Martens and Grosse 2015, arXiv:1503.05671, section 3;
Grosse and Martens 2016, arXiv:1602.01407, theorem 1, whose second factor also carries 1/T). Exact for one sample
per set and one position per sample; otherwise a and g are taken to be independent.
Layers are ``nn.Linear`` and ``nn.Conv2d`` without groups; other parameters (batch norm) have no factors.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raybench.data import Split
from raybench.passes import count_products
from raybench.training import Loss

FisherLabels = Literal["drawn", "exact", "data"]
SLICE_ELEMENTS = 2**24  # patches held at once: 64 MiB in fp32
Layers = Mapping[str, nn.Linear | nn.Conv2d]
Labellings = list[tuple[Tensor, Tensor | None]]
Consume = Callable[[str, Tensor, Tensor], None]  # (layer name, inputs, outputs)


def factored_layers(model: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """Module name -> layer, for the layers that are one matrix. ``ValueError`` for a model that has none."""
    found = {name: layer for name, layer in model.named_modules() if _is_matrix(layer)}
    if not found:
        raise ValueError("curvature by layers needs a linear layer or a convolution without groups, got neither")
    return cast(dict[str, nn.Linear | nn.Conv2d], found)


def _is_matrix(layer: nn.Module) -> bool:
    if type(layer) is nn.Conv2d:
        return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return type(layer) is nn.Linear


def parameters_of(layers: Layers) -> list[nn.Parameter]:
    """Weights and biases of the layers."""
    return [p for layer in layers.values() for p in layer.parameters()]


def matrix(layer: nn.Linear | nn.Conv2d) -> Tensor:
    """W [o, d] as a detached copy."""
    parts = [layer.weight.flatten(1)] + ([layer.bias[:, None]] if layer.bias is not None else [])
    return torch.cat([part.detach() for part in parts], dim=1)


def gradient_matrix(layer: nn.Linear | nn.Conv2d) -> Tensor:
    """The ``.grad`` of weights and bias in the shape of W [o, d]; zero where there is none."""
    parts = [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parts]
    return torch.cat([g.reshape(len(g), -1) for g in gradients], dim=1)


def split_matrix(layer: nn.Linear | nn.Conv2d, values: Tensor) -> list[Tensor]:
    """A matrix of the shape of W [o, d] as tensors of the shapes of weight and, if there is one, bias."""
    if layer.bias is None:
        return [values.view_as(layer.weight)]
    return [values[:, :-1].reshape(layer.weight.shape), values[:, -1]]


def input_rows(layer: nn.Linear | nn.Conv2d, inputs: Tensor) -> Tensor:
    """Inputs of a layer [n, ...] as I^T [n positions, d]."""
    if isinstance(layer, nn.Conv2d):
        padding = cast(tuple[int, int], layer.padding)
        patches = F.unfold(inputs, cast(tuple[int, int], layer.kernel_size), layer.dilation, padding, layer.stride)
        rows = patches.transpose(1, 2).flatten(0, 1)
    else:
        rows = inputs.flatten(0, -2)
    return rows if layer.bias is None else torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)


def output_rows(layer: nn.Linear | nn.Conv2d, outputs: Tensor) -> Tensor:
    """Outputs of a layer, or gradients there, as [n positions, o]."""
    if isinstance(layer, nn.Conv2d):
        return outputs.flatten(2).transpose(1, 2).flatten(0, 1)
    return outputs.flatten(0, -2)


@contextlib.contextmanager
def _watched(layers: Layers, consume: Consume) -> Iterator[None]:
    """``consume(name, inputs, outputs)`` at every call of a layer. The model must not work in place."""
    handles = [
        layer.register_forward_hook(lambda _, args, output, name=name: consume(name, args[0].detach(), output))
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _slices(layer: nn.Linear | nn.Conv2d, inputs: Tensor, outputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(I^T, outputs as rows) of some samples at a time."""
    positions = outputs[0].numel() // layer.weight.shape[0]
    step = max(1, SLICE_ELEMENTS // (positions * (layer.weight[0].numel() + 1)))
    for some, their in zip(inputs.split(step), outputs.split(step), strict=True):
        yield input_rows(layer, some), output_rows(layer, their)


@dataclass
class Moments:
    """Sums over the columns of a layer, float64: I I^T [d, d], S I^T [o, d], sum of S^2, and their number."""

    inputs: Tensor
    cross: Tensor
    squares: float = 0.0
    columns: int = 0


@contextlib.contextmanager
def input_moments(model: nn.Module, layers: Layers) -> Iterator[dict[str, Moments]]:
    """Moments of all that goes through the layers within the context. Their cost counts as backward work."""
    moments = {}
    for name, layer in layers.items():
        o, d = matrix(layer).shape
        zeros = layer.weight.new_zeros
        moments[name] = Moments(zeros(d, d, dtype=torch.float64), zeros(o, d, dtype=torch.float64))

    @torch.no_grad()
    def add(name: str, inputs: Tensor, outputs: Tensor) -> None:
        here = moments[name]
        for rows, out in _slices(layers[name], inputs, outputs.detach()):
            here.inputs += rows.T @ rows
            here.cross += out.T @ rows
            here.squares += float(out.double().square().sum())
            here.columns += len(rows)
            count_products(model, 2.0 * rows.numel() * (rows.shape[1] + out.shape[1]))

    with _watched(layers, add):
        yield moments


def kfac_factors(
    model: nn.Module,
    split: Split,
    loss: Loss,
    *,
    labels: FisherLabels = "drawn",
    batch_size: int = 64,
    samples: int | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """``<layer>/A`` [d, d] and ``<layer>/G`` [o, o] of ``factored_layers(model)`` on ``split``, without augmentation.

    ``loss(model, batch)`` gives per-sample losses [n] and must treat labels as classes of ``model``'s logits.
    ``labels``: ``drawn`` from the model's own softmax (the Fisher, one draw a sample), ``exact`` their expectation
    over all K classes (the Fisher, which for cross-entropy is the Gauss-Newton matrix; K passes), or those of the
    ``data`` (the empirical Fisher). ``samples``: that many, drawn without replacement, instead of all.
    In evaluation mode; modes and gradients are left as they were. Cost: a pass a sample (``drawn``: and one forward),
    and the products. ``ValueError`` without samples, or where draws are wanted without a ``generator``.
    """
    if generator is None and (labels == "drawn" or samples is not None):
        raise ValueError("drawn labels and subsamples need a generator to draw from; pass generator=")
    if samples is not None and samples < len(split):
        order = torch.randperm(len(split), generator=generator, device=generator.device if generator else None)
        split = split.subset(order[:samples])
    if len(split) == 0:
        raise ValueError("curvature needs at least one sample, got none")
    layers = factored_layers(model)
    sums: dict[str, Tensor] = {}
    calls: list[tuple[str, Tensor, Tensor]] = []

    def add(name: str, rows: Tensor, scale: float = 1.0) -> None:
        product = (rows.T @ rows).double() * scale
        sums[name] = sums[name] + product if name in sums else product
        count_products(model, 2.0 * rows.numel() * rows.shape[1])

    def accumulate(images: Tensor, targets: Tensor, weights: Tensor | None, inputs_too: bool) -> None:
        calls.clear()
        losses = loss(model, (images, targets))
        total = losses.sum() if weights is None else (losses * weights).sum()
        gradients = torch.autograd.grad(total, [output for _, _, output in calls])
        with torch.no_grad():
            for (name, inputs, _), gradient in zip(calls, gradients, strict=True):
                positions = gradient[0].numel() // layers[name].weight.shape[0]
                # The counter takes a backward pass to make gradients of the weights; this one has not.
                count_products(model, -2.0 * gradient.numel() * layers[name].weight[0].numel())
                for rows, out in _slices(layers[name], inputs, gradient):
                    if inputs_too:
                        add(f"{name}/A", rows)
                    add(f"{name}/G", out, 1.0 / positions)

    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        for images, targets in split.batches(batch_size):
            if labels == "data":
                chosen: Labellings = [(targets, None)]
            else:
                with torch.no_grad():
                    shares = model(images).softmax(dim=1)
                chosen = _labellings(shares, labels, generator)
            with torch.enable_grad(), _watched(layers, lambda *call: calls.append(call)):
                for position, (some, weights) in enumerate(chosen):
                    accumulate(images, some, weights, inputs_too=position == 0)
    finally:
        calls.clear()
        for module, training in modes:
            module.training = training
    kinds = {name: layer.weight.dtype for name, layer in layers.items()}
    return {key: (value / len(split)).to(kinds[key[:-2]]) for key, value in sums.items()}


def _labellings(shares: Tensor, labels: FisherLabels, generator: torch.Generator | None) -> Labellings:
    """Label vectors [n], each with the square roots of the weights of its gradients' squares."""
    if labels == "drawn":
        return [(torch.multinomial(shares, 1, generator=generator)[:, 0], None)]
    count, classes = shares.shape
    return [(torch.full((count,), k, device=shares.device), shares[:, k].sqrt()) for k in range(classes)]


class KfacInverse:
    """(F + damping)^{-1} applied to matrices of the shapes of the layers, from ``kfac_factors``.

    The damping is factored, and relative to the mean eigenvalues m_A and m_G of the factors:
    (A + sqrt(damping) m_A)^{-1} and (G + sqrt(damping) m_G)^{-1}. That is the rule of Martens and Grosse 2015, section
    6.3, with lambda = damping m_A m_G, the mean eigenvalue of F times ``damping``.
    """

    def __init__(self, model: nn.Module, factors: Mapping[str, Tensor], damping: float) -> None:
        self._model = model
        self._inverses = {key: _damped_inverse(value, damping) for key, value in factors.items()}

    def solve(self, name: str, gradient: Tensor) -> Tensor:
        """(G + ..)^{-1} gradient (A + ..)^{-1} for the layer ``name``, [o, d], float64."""
        (left, m_g), (right, m_a) = self._inverses[f"{name}/G"], self._inverses[f"{name}/A"]
        count_products(self._model, 2.0 * gradient.numel() * sum(gradient.shape))
        return (left @ gradient @ right).double() / m_g / m_a


def _damped_inverse(factor: Tensor, damping: float) -> tuple[Tensor, float]:
    """(factor / m + sqrt(damping))^{-1} and the mean eigenvalue m, apart: gradients of a model that fits its data are
    so small that the inverse itself overflows in fp32."""
    wide = factor.double()
    mean = float(wide.diagonal().mean()) or 1.0
    eye = torch.eye(len(wide), dtype=wide.dtype, device=wide.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(wide / mean + math.sqrt(damping) * eye))
    return inverse.to(factor.dtype), mean


def activation_preconditioner(inputs: Tensor, cross: Tensor, beta: float, columns: int, damping: float) -> Tensor:
    """P [d, d] of the activation-derived Fisher (Choi 2025, Eq. 14), made to exist by ``damping``:

        P = R [ (S I^T / B)^T (S I^T / B) - (beta / B) A ] R,   A = I I^T / B,   R = (A + damping tr(A)/d)^{-1}

    from ``inputs`` = I I^T [d, d] and ``cross`` = S I^T [o, d], sums over B ``columns``. Without damping and for I of
    full rank it is pinv(I)^T (S^T S - beta) pinv(I), and, with S = W I,  W^T W - (beta / B) A^{-1}.
    """
    second, mixed = inputs.double() / columns, cross.double() / columns
    eye = torch.eye(len(second), dtype=second.dtype, device=second.device)
    inverse = torch.linalg.inv(second + damping * second.diagonal().mean() * eye)
    inner = mixed.T @ mixed - (beta / columns) * second
    result: Tensor = inverse @ inner @ inverse
    return result


def relative_step(gradient: Tensor, weights: Tensor, step: float) -> Tensor:
    """``gradient`` at the length ``step`` |weights|; zero stays zero."""
    length = gradient.norm().clamp_min(torch.finfo(gradient.dtype).tiny)
    scaled: Tensor = gradient / length * (step * weights.norm())
    return scaled
