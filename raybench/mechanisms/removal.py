"""Influence of a group of samples: the direction in which the weights move when it is taken out of the training data.

For the mean loss over N samples, of which the N_f of D_f leave (Koh and Liang 2017, arXiv:1703.04730, section 2.1, for
a group):

    change = H^{-1} v,    v = 1/N sum_{D_f} g - N_f / (N N_r) sum_{D_r} g = N_f / N (mean_{D_f} g - mean_{D_r} g)

with g the gradient of a sample's loss. The second sum is what the remaining samples' larger weight adds; it is zero
at a minimum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from raybench.data import Batch, Split
from raybench.mechanisms.curvature import KfacInverse, factored_layers, split_matrix
from raybench.mechanisms.saliency import summed_gradients
from raybench.training import Loss

Tensors = Mapping[str, Tensor]


def removal_gradient(model: nn.Module, forget: Split, retain: Split, loss: Loss, batch_size: int) -> dict[str, Tensor]:
    """v of the module docstring, of ``model`` in evaluation mode. Cost: N sample passes."""
    count = len(forget) + len(retain)
    found: dict[str, Tensor] = {}
    for split, sign in ((forget, 1.0), (retain, -1.0)):
        weight = sign * len(forget) / (count * len(split))
        for name, value in _total_gradient(model, split, loss, batch_size).items():
            found[name] = found.get(name, 0.0) + weight * value
    return found


def _total_gradient(model: nn.Module, split: Split, loss: Loss, batch_size: int) -> dict[str, Tensor]:
    """Sum over samples of the loss gradients."""

    def sized(network: nn.Module, batch: Batch) -> Tensor:
        return len(batch[1]) * loss(network, batch)  # so that the mean over a batch becomes its sum

    return summed_gradients(model, split.batches(batch_size), sized)


def woodfisher(model: nn.Module, v: Tensors, samples: Iterable[Batch], loss: Loss, prior: float) -> dict[str, Tensor]:
    """An inverse-Fisher product with ``v`` by a recursion over ``samples``, batches of one, that keeps one vector.

    k = v, o = the first gradient; for every further gradient g:  t = o.g,  k -= (k.g / (prior + t)) o,
    o -= (t / (prior + t)) o. It is the rule of the l1-sparse paper's code (arXiv:2304.04934), after Singh and Alistarh
    2020 (arXiv:2004.14340), whose own recursion needs every o anew; with one sample in all, k is v.
    In evaluation mode. Cost: one sample pass each.
    """
    parameters = dict(model.named_parameters())
    k = torch.cat([v[name].flatten() for name in parameters])
    o: Tensor | None = None
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        for batch in samples:
            value = loss(model, batch).mean()
            found = torch.autograd.grad(value, list(parameters.values()), materialize_grads=True)
            g = torch.cat([part.flatten() for part in found])
            if o is None:
                o = g
                continue
            t = torch.dot(o, g)
            k = k - (torch.dot(k, g) / (prior + t)) * o
            o = o - (t / (prior + t)) * o
    finally:
        for module, training in modes.items():
            module.training = training
    parts = k.split([p.numel() for p in parameters.values()])
    return {name: part.view_as(p) for (name, p), part in zip(parameters.items(), parts, strict=True)}


def diagonal_solve(v: Tensors, fisher: Tensors, damping: float) -> dict[str, Tensor]:
    """v / (F + damping mean(F)), the mean over all entries; zero where F is zero everywhere."""
    total = sum(float(value.double().sum()) for value in fisher.values())
    mean = total / sum(value.numel() for value in fisher.values())
    if mean == 0.0:
        return {name: torch.zeros_like(value) for name, value in v.items()}
    return {n: (value.double() / mean / (fisher[n].double() / mean + damping)).to(value) for n, value in v.items()}


def kfac_solve(model: nn.Module, v: Tensors, factors: Tensors, damping: float) -> dict[str, Tensor]:
    """(A (x) G + damping)^{-1} v for linear and convolutional layers (see ``KfacInverse``); zero for the rest."""
    inverse = KfacInverse(model, factors, damping)
    found = {name: torch.zeros_like(value) for name, value in v.items()}
    for prefix, layer in factored_layers(model).items():
        names = [f"{prefix}.{part}" if prefix else part for part, _ in layer.named_parameters(recurse=False)]
        wide = torch.cat([v[name].reshape(len(v[name]), -1) for name in names], dim=1)
        for name, value in zip(names, split_matrix(layer, inverse.solve(prefix, wide)), strict=True):
            found[name] = value.to(v[name])
    return found
