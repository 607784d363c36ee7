"""Squared per-sample gradients of each kind of layer against float64 gradients of one sample at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from raybench.fisher import fisher_diag
from raybench.open_attention import opened_attention
from raybench.passes import PassCounter

N, CLASSES = 7, 4


class Attention(nn.Module):
    """torch's own attention, whose projections are no modules."""

    def __init__(self, heads: int = 2, weights: bool = False) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, heads, batch_first=True)
        self.weights = weights

    def forward(self, x: Tensor) -> Tensor:
        out, shares = self.attention(x, x, x, need_weights=self.weights)
        return torch.cat([out, shares], 2) if self.weights else out


class Bare(nn.Module):
    """Parameters of no layer: repeated, added (twice scaled), multiplied from either side."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.positions = nn.Parameter(torch.randn(1, 6, 6))
        self.shift = nn.Parameter(torch.randn(6))
        self.left, self.right = nn.Parameter(torch.randn(6, 1)), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        x = torch.add(x + self.positions, self.shift, alpha=2.0)
        return torch.tanh(self.left * x) * self.right


class Turned(nn.Module):
    """[n, d] to [n, tokens, d] of a 30-pixel input."""

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (5, 6))


def images(draw: torch.Generator) -> Tensor:
    return torch.randn(N, 4, 6, 5, generator=draw)


def rows(draw: torch.Generator) -> Tensor:
    return torch.randn(N, 30, generator=draw)


def words(draw: torch.Generator) -> Tensor:
    return torch.randint(5, (N, 6), generator=draw)  # some word twice in every sample


def word(draw: torch.Generator) -> Tensor:
    return torch.randint(5, (N,), generator=draw)


CASES: dict[str, tuple[list[nn.Module], Callable[[torch.Generator], Tensor]]] = {
    "linear": ([nn.Linear(30, 5), nn.Tanh()], rows),
    "linear on sequences": ([Turned(), nn.Linear(6, 5), nn.Tanh(), nn.Flatten()], rows),
    "conv": ([nn.Conv2d(4, 6, 3, padding=1), nn.Tanh(), nn.Flatten()], images),
    "conv, groups": ([nn.Conv2d(4, 6, (3, 2), groups=2), nn.Tanh(), nn.Flatten()], images),
    "conv, depthwise": ([nn.Conv2d(4, 8, 3, groups=4, padding=(0, 2)), nn.Tanh(), nn.Flatten()], images),
    "conv, dilation": ([nn.Conv2d(4, 3, 2, dilation=(3, 2)), nn.Tanh(), nn.Flatten()], images),
    "conv, stride": ([nn.Conv2d(4, 3, 3, stride=(2, 3), padding=2), nn.Tanh(), nn.Flatten()], images),
    "conv, 1 x 1": ([nn.Conv2d(4, 3, 1, stride=2, bias=False), nn.Tanh(), nn.Flatten()], images),
    "batch norm": ([nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten()], images),
    "group norm": ([nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten()], images),
    "layer norm": ([nn.LayerNorm(30), nn.Tanh()], rows),
    "layer norm on sequences": ([Turned(), nn.LayerNorm(6), nn.Tanh(), nn.Flatten()], rows),
    "layer norm of two sides": ([nn.LayerNorm((6, 5), bias=False), nn.Tanh(), nn.Flatten()], images),
    "embedding": ([nn.Embedding(9, 5), nn.Tanh(), nn.Flatten()], words),
    "embedding, padding": ([nn.Embedding(9, 5, padding_idx=2), nn.Tanh(), nn.Flatten()], words),
    "embedding, a word a sample": ([nn.Embedding(5, 3), nn.Tanh()], word),
    "attention projections": ([Turned(), nn.Linear(6, 6), Attention(), nn.Tanh(), nn.Flatten()], rows),
    "attention that shows its weights": ([Turned(), Attention(3, True), nn.Tanh(), nn.Flatten()], rows),
    "bare parameters": ([Turned(), Bare(), nn.Flatten()], rows),
}


def network(layers: list[nn.Module], sample: Tensor) -> nn.Module:
    """The layers with drawn parameters, and a head for their outputs."""
    model = nn.Sequential(*copy.deepcopy(layers)).eval()
    with torch.no_grad():
        model.append(nn.Linear(model(sample).shape[1], CLASSES))
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=draw))
        for name, buffer in model.named_buffers():
            if buffer.is_floating_point():
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=draw), non_blocking=name == "")
    return model


def one_by_one(model: nn.Module, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The oracle: float64, a batch of one at a time, plain autograd."""
    double = copy.deepcopy(model).double()
    total = {name: torch.zeros_like(p) for name, p in double.named_parameters()}
    for x, y in zip(inputs, labels, strict=True):
        x = x.double() if x.is_floating_point() else x
        grads = torch.autograd.grad(F.cross_entropy(double(x[None]), y[None]), list(double.parameters()))
        for sums, g in zip(total.values(), grads, strict=True):
            sums += g.detach().square() / len(labels)
    return {name: sums.detach() for name, sums in total.items()}


@pytest.mark.parametrize("case", CASES)
def test_squared_gradients_are_those_of_one_sample_at_a_time(case: str) -> None:
    layers, make = CASES[case]
    draw = torch.Generator().manual_seed(1)
    inputs, labels = make(draw), torch.randint(CLASSES, (N,), generator=draw)
    model = network(layers, inputs)
    expected = one_by_one(model, inputs, labels)
    for options in ({"batch_size": 3}, {"slice_elements": 1}):
        found = fisher_diag(model, inputs, labels, **options)
        assert list(found) == list(expected)
        for name, value in expected.items():
            torch.testing.assert_close(
                found[name].double(), value, rtol=1e-5, atol=1e-6 * float(value.max()), msg=f"{case}: {name}"
            )


@pytest.mark.parametrize("case", CASES)
def test_no_kind_of_layer_needs_a_second_pass(case: str) -> None:
    layers, make = CASES[case]
    inputs = make(torch.Generator().manual_seed(1))
    model = network(layers, inputs)
    tracked = PassCounter(nn.Sequential(nn.Linear(2, 2)), (2,))  # in operations of any unit
    tracked.track(model)
    model(inputs)
    once = tracked.forward_flops
    fisher_diag(model, inputs, torch.zeros(N, dtype=torch.int64))
    assert tracked.forward_flops == pytest.approx(2 * once)


class Largest(TorchDispatchMode):
    """The most elements that any tensor made inside has."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                own = torch._C._functorch.get_unwrapped(tensor) if "unwrapped" in str(type(tensor)) else tensor
                self.elements = max(self.elements, own.numel())
        return out


@pytest.mark.parametrize("fallback", [False, True])
def test_memory_is_bounded_by_the_slice(fallback: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """2,304 weights a sample and 64 samples: 147,456 elements of gradients at once, or a slice of them."""
    if fallback:
        monkeypatch.setattr("raybench.sample_gradients.FAST", ())
    draw = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(64, CLASSES, bias=False))
    inputs, labels = torch.randn(64, 16, 4, 4, generator=draw), torch.randint(CLASSES, (64,), generator=draw)
    largest = {}
    for elements in (2**24, 20_000):
        with Largest() as seen:
            fisher_diag(model, inputs, labels, slice_elements=elements)
        largest[elements] = seen.elements
    assert largest[2**24] >= 64 * 16 * 16 * 9
    assert largest[20_000] <= 20_000


def test_attention_is_as_torch_computes_it_and_left_as_it_was() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, 6, generator=draw)
    layer = nn.MultiheadAttention(6, 2, batch_first=True).eval()
    for options in ({}, {"need_weights": False}, {"average_attn_weights": False}):
        expected = layer(x, x, x, **options)
        with opened_attention(layer) as opened:
            assert len(opened) == 2
            found = layer(x, x, x, **options)
            torch.testing.assert_close(layer(x, x + 1, x)[0], layer.__class__.forward(layer, x, x + 1, x)[0])
        torch.testing.assert_close(found, expected)
        assert "forward" not in layer.__dict__
    masked = torch.eye(5, dtype=torch.bool)
    expected = layer(x, x, x, attn_mask=masked)
    with opened_attention(layer):
        torch.testing.assert_close(layer(x, x, x, attn_mask=masked), expected)
