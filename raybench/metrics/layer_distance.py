"""Distance to the retrained model in the space of weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raybench.errors import MetricUnavailable
from raybench.outputs import MetricContext
from raybench.probe import Probe
from raybench.registry import LOWER, METRICS


@METRICS.register(
    "layer_distance",
    label="Layer-wise distance",
    unit="ratio",
    range=(0.0, None),
    direction=LOWER,
    pair=True,
    probe=True,
)
def layer_distance(probe: Probe, context: MetricContext) -> float:
    """Mean over layers of |w_u - w_g| / |w_g|, w the weights and biases of a layer. WEAK evidence.

    Two retrained models with different seeds are as far from each other as anything, so among models that do not
    share initialisation and data order with the retrained one this ranks whoever moved least first. Read it only
    beside the gold-vs-gold floor. A layer is a module with parameters of its own; buffers do not count.
    """
    ours, theirs = _layers(probe.model), _layers(probe.retrained)
    if {n: w.shape for n, w in ours.items()} != {n: w.shape for n, w in theirs.items()}:
        raise MetricUnavailable("the model has other layers than the retrained one")
    norms = {name: float(weights.norm()) for name, weights in theirs.items()}
    if not norms or min(norms.values()) == 0.0:
        raise MetricUnavailable("the retrained model has no layers, or one whose weights are all zero")
    return sum(float((ours[name] - theirs[name]).norm()) / norm for name, norm in norms.items()) / len(norms)


def _layers(model: nn.Module) -> dict[str, Tensor]:
    """Layer name -> all its parameters as one vector, float64 on the CPU."""
    found = {}
    for name, module in model.named_modules():
        own = [p.detach().double().cpu().flatten() for p in module.parameters(recurse=False)]
        if own:
            found[name] = torch.cat(own)
    return found
