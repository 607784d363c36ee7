"""The predictors of rewinding: layout, conventions, closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raybench.mechanisms.rewinding import (
    BACK,
    BIAS,
    CONV,
    FC,
    HISTORY,
    KINDS,
    HistoryNet,
    clip_to,
    extrapolate,
    in_chunks,
    kind_of,
    load_predictors,
    reversed_inputs,
    save_predictors,
)


def net(seed=0):
    """A predictor with weights everywhere, biases too, so that no term of it is zero."""
    made = HistoryNet()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / p.shape[-1] ** 0.5)
    return made


def test_parameter_counts():
    """InvWNN's and WNN's, as counted in the released files (seed-methods 3.11 d)."""
    assert sum(p.numel() for p in HistoryNet().parameters()) == 62_609
    assert sum(p.numel() for p in HistoryNet(5, (64,), 32).parameters()) == 9_425


def test_operation_types_by_rank():
    shapes = {(4, 3, 3, 3): CONV, (4, 3, 3): CONV, (4, 3): FC, (4,): BIAS, (): BIAS}
    assert {shape: kind_of(torch.zeros(shape)) for shape in shapes} == shapes


def test_inputs_are_turned_round():
    history = torch.arange(15.0)[:, None] ** 2
    values, differences = reversed_inputs(history)
    assert values[0].tolist() == [float(k**2) for k in range(14, -1, -1)]
    assert differences.shape == (1, 14)
    assert differences[0, -1] == history[0, 0] - history[1, 0]
    assert differences[0, 0] == history[13, 0] - history[14, 0]


def test_network_agrees_with_the_formula_written_out():
    """Two streams, ActNet, one tanh unit, in float64 NumPy."""
    made = net().double()
    w = {name: p.detach().numpy() for name, p in made.state_dict().items()}
    history = torch.randn(15, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    v = history.numpy()[::-1].T

    def leaky(x):
        return np.where(x > 0, x, 0.3 * x)

    def dense(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def stream(x, name):
        h = dense(leaky(dense(x, f"{name}.dense.0")), f"{name}.dense.1")
        s = np.maximum(dense(h, f"{name}.act.state"), 0)
        h = dense(s, f"{name}.act.a") + dense(s, f"{name}.act.b") * np.exp(dense(s, f"{name}.act.c") * h)
        return leaky(dense(h, f"{name}.out"))

    both = np.concatenate([stream(v, "values"), stream(np.diff(v, axis=1), "differences")], axis=1)
    expected = np.tanh(dense(both, "join"))[:, 0]
    assert made(history).detach().numpy() == pytest.approx(expected, abs=1e-12)
    assert np.ptp(expected) > 0.01


def test_initial_weights_come_from_the_generator_alone():
    before = torch.get_rng_state()
    first, again, other = (HistoryNet().initialise(torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.join.weight, other.join.weight)
    kernel = first.values.dense[1].weight.detach()
    assert float(kernel.var()) == pytest.approx(0.1 / 128, rel=0.05)
    assert all(bool((p == 0).all()) for name, p in first.named_parameters() if name.endswith("bias"))


def test_extrapolation_is_exact_on_linear_histories():
    """Self-check (a): theta_{t-U} to the bit, on numbers that binary fractions hold."""
    start, slope = torch.tensor([1.0, -0.5, 0.25]), torch.tensor([0.125, -0.03125, 0.0])
    path = torch.stack([start + k * slope for k in range(BACK + HISTORY)])
    history = path[BACK:]
    assert torch.equal(history[0] + extrapolate(history), path[0])


def geometric(history):
    """The exact answer on theta* + A rho^k: rho from two steps, then the sum of the three steps before."""
    first, second = history[0] - history[1], history[1] - history[2]
    rho = second / first
    return first * (rho**-3 - 1) / (1 - rho)


def test_quadratic_by_its_closed_form():
    """Self-check (b): gradient descent on a quadratic contracts by rho, and A = 0.1 gives the published numbers."""
    rho = torch.tensor([0.99, 0.9, 0.5], dtype=torch.float64)
    history = 0.1 * rho ** torch.arange(HISTORY, dtype=torch.float64)[:, None]
    back = history[0] + in_chunks(geometric, history)
    assert back.tolist() == pytest.approx([0.10306102, 0.13717421, 0.8], rel=1e-6)
    assert (history[0] + extrapolate(history)).tolist() != pytest.approx(back.tolist(), rel=1e-3)


def test_chunks_do_not_matter_and_shapes_stay():
    made = net()
    history = torch.randn(15, 3, 5, 2, 2, generator=torch.Generator().manual_seed(2))
    whole = in_chunks(made, history)
    assert whole.shape == (3, 5, 2, 2)
    assert not whole.requires_grad
    assert torch.allclose(in_chunks(made, history, chunk=7), whole, atol=1e-6)
    assert torch.allclose(whole[1, 2, 0, 1], made(history[:, 1, 2, 0, 1][:, None])[0], atol=1e-6)
    assert in_chunks(made, history[:, 0, 0, 0, 0]).shape == ()


def test_clip_guard():
    weight = torch.tensor([3.0, 4.0])
    long, short = torch.tensor([0.0, 1.0]), torch.tensor([0.0, 0.2])
    assert clip_to(short, weight, 0.05) == (short, False)
    clipped, hit = clip_to(long, weight, 0.05)
    assert hit
    assert clipped.tolist() == pytest.approx([0.0, 0.25])
    assert clip_to(long, torch.zeros(2), 0.05)[0].tolist() == [0.0, 0.0]


def test_files_keep_the_predictors(tmp_path):
    made = {kind: net(seed) for seed, kind in enumerate(KINDS)}
    save_predictors(tmp_path / "p.safetensors", made)
    before = torch.get_rng_state()
    found = load_predictors(tmp_path / "p.safetensors")
    assert torch.equal(before, torch.get_rng_state())
    history = torch.randn(15, 9, generator=torch.Generator().manual_seed(3))
    for kind in KINDS:
        assert torch.equal(found[kind](history), made[kind](history))
        assert not any(p.requires_grad for p in found[kind].parameters())
    assert not torch.equal(found[CONV](history), found[FC](history))
    save_predictors(tmp_path / "q.safetensors", {kind: HistoryNet(5, (64,), 32) for kind in KINDS})
    with pytest.raises(RuntimeError, match=r"size mismatch|Missing key"):
        load_predictors(tmp_path / "q.safetensors")
