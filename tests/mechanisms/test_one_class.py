"""Centres, radii and scores of one-class networks."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from raybench.mechanisms.one_class import OneClass, OneClassEnsemble, without_biases
from raybench.registry import MODELS
from raybench.testing import make_bench


def test_no_biases_and_no_affine_batch_norm() -> None:
    model = without_biases(MODELS["resnet8"].fn(10, (1, 28, 28), width=4))
    assert not [name for name, _ in model.named_parameters() if name.endswith("bias")]
    assert all(p.ndim > 1 for p in model.parameters())
    assert float(model.eval()(torch.zeros(2, 1, 28, 28)).detach().abs().max()) == 0.0


def test_centre_radius_and_distance_by_numpy() -> None:
    bench = make_bench("mlp", samples=120)
    split = bench.splits["retain"]
    torch.manual_seed(3)
    member = OneClass(bench.build(), 10)
    with torch.no_grad():
        answers = member.body(split.tensors()[0]).double().numpy()
    member.set_centre(split)
    mean = answers.mean(axis=0)
    least = 0.1 * np.sqrt((mean**2).mean())
    centre = np.where(mean < 0, np.minimum(mean, -least), np.maximum(mean, least))
    np.testing.assert_allclose(member.centre.numpy(), centre, rtol=1e-4)
    member.set_radius(split)
    distances = ((answers - centre) ** 2).sum(axis=1)
    np.testing.assert_allclose(float(member.radius2), np.quantile(distances, 0.95), rtol=1e-4)
    with torch.no_grad():
        np.testing.assert_allclose(member(split.tensors()[0]).numpy(), distances, rtol=1e-3, atol=1e-6)


class Constant(nn.Module):
    """Answers ``value`` of every image."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full((len(x), 1), self.value)


def test_scores_and_a_dropped_class() -> None:
    ensemble = OneClassEnsemble([OneClass(Constant(v), 1) for v in (1.0, 2.0, 3.0)])
    ensemble.members[2].radius2.copy_(torch.tensor(10.0))  # type: ignore[union-attr, operator]
    x = torch.zeros(1, 1, 1, 1)
    torch.testing.assert_close(ensemble(x), torch.tensor([[-1.0, -4.0, -0.9]]))
    ensemble.finish(2, make_bench("mlp", samples=120).splits["retain"].subset(torch.empty(0, dtype=torch.int64)))
    torch.testing.assert_close(ensemble(x), torch.tensor([[-1.0, -4.0, -14.0]]))
