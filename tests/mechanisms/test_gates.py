"""Gates between channels and classes, by the numbers of the specification."""

from __future__ import annotations

import torch
from torch import nn

from raybench.mechanisms.gates import channels_of, clip_gates, gate_penalty, no_channels, scaled_channels, unrelated
from raybench.registry import CLASS, MODELS
from raybench.task import Facts


def test_penalty_at_the_first_values() -> None:
    """K = 4, C = 3, all 0.5: |M|_1 = 6, relu term 4.8, inner products 3.0, R = 5.1."""
    gates = torch.full((4, 3), 0.5)
    assert abs(float(gate_penalty(gates)) - 5.1) < 1e-6
    sparse = torch.eye(3)[:, :2]  # |M|_1 = 2 over 0.6, no overlap
    assert abs(float(gate_penalty(sparse)) - 1.4) < 1e-6


def test_clipping_by_hand() -> None:
    gates = torch.tensor([[0.5, 0.25, -0.1], [0.2, 0.4, 0.1]])
    clip_gates(gates)
    torch.testing.assert_close(gates, torch.tensor([[1.0, 0.5, 0.0], [0.5, 1.0, 0.25]]))


def test_unrelated_channels() -> None:
    gates = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.2, 1.0], [0.0, 0.0, 1.0]])
    assert unrelated(gates, (0,)).tolist() == [False, True, True]
    assert unrelated(gates, (0, 1)).tolist() == [False, False, True]
    assert unrelated(gates, (0, 1), 0.2).tolist() == [False, True, True]


def test_scaling_a_stage_within_the_context_only() -> None:
    stage = nn.Identity()
    x = torch.ones(2, 3, 2, 2)
    with scaled_channels(stage) as held:
        assert torch.equal(stage(x), x)
        held["by"] = torch.tensor([[1.0, 2.0, 0.0], [3.0, 1.0, 1.0]])  # one row a sample
        assert stage(x)[:, :, 0, 0].tolist() == [[1.0, 2.0, 0.0], [3.0, 1.0, 1.0]]
        held["by"] = torch.tensor([0.0, 1.0, 1.0])
        assert stage(x)[1, :, 1, 1].tolist() == [0.0, 1.0, 1.0]
    assert torch.equal(stage(x), x)


def test_channels_of_models() -> None:
    shape = (1, 28, 28)
    for name, options, expected in (("lenet5", {}, 16), ("resnet8", {"width": 4}, 16), ("mlp", {"hidden": (7,)}, 7)):
        model = MODELS[name].fn(10, shape, **options).train()
        assert channels_of(model, torch.zeros(2, *shape)) == expected
        assert model.training
        assert no_channels(Facts("digits", name, 10, shape, (0,), CLASS, model_options=options)) is None
    softmax = Facts("digits", "mlp(hidden=[])", 10, shape, (0,), CLASS, model_options={"hidden": ()})
    assert "no last stage" in (no_channels(softmax) or "")
