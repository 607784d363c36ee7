"""Rewinding a network: predicting, weight by weight, where it was before, from where training took it since.

The predictor sees a *history* of one weight, ``theta_t, ..., theta_{t+K-1}`` (K = 15 ends of epochs), and answers
with the residual ``theta_{t-U} - theta_t`` (U = 3). There is one per operation type, told apart by a tensor's rank.
After Jang, Kim and Youn, Learning to Rewind, AAAI 2025 (doi:10.1609/aaai.v39i25.34822, equations 1 to 7).
Histories here are tensors [K, ...] in the order of time; a predictor turns them round itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

HISTORY = 15  # K: the paper's text is silent, its code has 15
BACK = 3  # U: the authors' poster
CONV, FC, BIAS = "conv", "fc", "bias"
KINDS = (CONV, FC, BIAS)
SLOPE = 0.3  # of the leaky ReLU: the default of the framework that the authors used
CHUNK = 1 << 12  # coordinates at a time: activations of a chunk stay in the processor's cache

Predict = Callable[[Tensor], Tensor]  # a history [K, n] to residuals [n]
PredictKind = Callable[[str, Tensor], Tensor]  # the same, told the operation type


def kind_of(weight: Tensor) -> str:
    """Operation type of a parameter by its rank: ``conv`` for 3 and more, ``fc`` for 2, ``bias`` below (biases, and
    scales and shifts of normalisation layers)."""
    return CONV if weight.ndim >= 3 else FC if weight.ndim == 2 else BIAS


def reversed_inputs(history: Tensor) -> tuple[Tensor, Tensor]:
    """What the networks read of a history [K, n]: values [n, K] latest first, so the last is theta_t, and their
    differences [n, K - 1], the last of which is theta_t - theta_{t+1}. Nothing is normalised."""
    values = history.flip(0).T
    return values, values[:, 1:] - values[:, :-1]


class ActNet(nn.Module):
    """a(s) + b(s) * exp(c(s) * h) with s = ReLU(linear(h)) of 8 units: a non-linearity shaped by its own input."""

    def __init__(self, width: int, hidden: int = 8) -> None:
        super().__init__()
        self.state = _dense(width, hidden)
        self.a, self.b, self.c = (_dense(hidden, width) for _ in range(3))

    def forward(self, h: Tensor) -> Tensor:
        """[n, width] to [n, width]."""
        s = torch.relu(self.state(h))
        shaped: Tensor = self.a(s) + self.b(s) * torch.exp(self.c(s) * h)
        return shaped


class Stream(nn.Module):
    """Dense layers of ``widths`` with leaky ReLUs between, an ActNet, a dense layer of ``out``, leaky ReLU."""

    def __init__(self, length: int, widths: Sequence[int], out: int) -> None:
        super().__init__()
        sizes = [length, *widths]
        self.dense = nn.ModuleList(_dense(before, after) for before, after in zip(sizes, widths, strict=False))
        self.act = ActNet(widths[-1])
        self.out = _dense(widths[-1], out)

    def forward(self, x: Tensor) -> Tensor:
        """[n, length] to [n, out]."""
        for layer in self.dense[:-1]:
            x = F.leaky_relu(layer(x), SLOPE)
        return F.leaky_relu(self.out(self.act(self.dense[-1](x))), SLOPE)


class HistoryNet(nn.Module):
    """Two streams, over the values and over the differences of a history, joined by one tanh unit.

    The defaults are InvWNN's (62,609 parameters); ``HistoryNet(5, (64,), 32)`` has the layers of its predecessor WNN
    (9,425). Weights are zero until ``initialise``, so that making one draws no random number.
    """

    def __init__(self, length: int = HISTORY, widths: Sequence[int] = (128, 128), out: int = 64) -> None:
        super().__init__()
        self.values = Stream(length, widths, out)
        self.differences = Stream(length - 1, widths, out)
        self.join = _dense(2 * out, 1)

    def forward(self, history: Tensor) -> Tensor:
        """Residuals [n], in (-1, 1), of a history [K, n]."""
        values, differences = reversed_inputs(history)
        both = torch.cat([self.values(values), self.differences(differences)], dim=1)
        return torch.tanh(self.join(both)).squeeze(1)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> HistoryNet:
        """Kernels uniform with variance 0.1 / fan-in, biases zero."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                bound = math.sqrt(3 * 0.1 / layer.in_features)
                layer.weight.uniform_(-bound, bound, generator=generator)
        return self


def _dense(inputs: int, outputs: int) -> nn.Linear:
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def extrapolate(history: Tensor, back: int = BACK) -> Tensor:
    """U (theta_t - theta_{t+1}): exact on linear histories, and the plainest control of a learned predictor."""
    return back * (history[0] - history[1])


@torch.no_grad()
def in_chunks(predict: Predict, history: Tensor, chunk: int = CHUNK) -> Tensor:
    """``predict`` on a history [K, ...] of a whole tensor: residuals of the tensor's shape."""
    flat = history.reshape(len(history), -1)
    parts = [predict(part) for part in flat.split(chunk, dim=1)]
    return torch.cat(parts).view(history.shape[1:])


def clip_to(residual: Tensor, weight: Tensor, share: float) -> tuple[Tensor, bool]:
    """The residual shortened to at most ``share`` of the norm of ``weight``, and whether it had to be."""
    longest = share * weight.norm()
    norm = residual.norm()
    if norm <= longest:
        return residual, False
    return residual * (longest / norm), True


def save_predictors(path: str | Path, predictors: Mapping[str, HistoryNet]) -> None:
    """Write the predictors of all operation types into one safetensors file, keys ``<kind>.<parameter>``."""
    tensors = {f"{kind}.{name}": t for kind in KINDS for name, t in predictors[kind].state_dict().items()}
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path)


def load_predictors(path: str | Path, device: torch.device | str = "cpu") -> dict[str, HistoryNet]:
    """The predictors of a file that ``save_predictors`` wrote, frozen. ``RuntimeError`` for other keys or shapes."""
    tensors = {name: t.clone() for name, t in load_file(path).items()}
    predictors = {}
    for kind in KINDS:
        net = HistoryNet()
        prefix = f"{kind}."
        net.load_state_dict({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
        predictors[kind] = net.to(device).eval().requires_grad_(False)
    return predictors
