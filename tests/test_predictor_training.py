"""Training the predictors of rewind, and the controls they are judged against."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
import yaml
from scipy.optimize import minimize_scalar

from raybench.content_store import ContentStore
from raybench.errors import UserError
from raybench.histories import KIND, Windows, collect, plan_histories
from raybench.mechanisms.rewinding import BACK, HISTORY, KINDS, extrapolate, load_predictors
from raybench.predictor_training import (
    PredictorTraining,
    best_coefficient,
    cut_windows,
    exponential_windows,
    judge,
    train_all,
    train_predictor,
)
from raybench.seeding import torch_generator

JOB = Path(__file__).parents[1] / "jobs" / "train_predictors.py"
QUICK = PredictorTraining(windows=60, epochs=2, batch_size=64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def linear(count, seed=0, slope=0.01):
    """Histories that are straight lines: residual = 3 (theta_t - theta_{t+1})."""
    draw = generator(seed)
    start, step = 0.1 * torch.randn(count, generator=draw), slope * torch.randn(count, generator=draw)
    path = start + step * torch.arange(BACK + HISTORY)[:, None]
    return Windows(path[BACK:], path[0] - path[BACK])


def test_exponential_family_is_what_it_says():
    made = exponential_windows(20_000, generator(), rho=(0.5, 0.99), distance=(1e-3, 1e-1))
    history = made.history.double()
    first, second = history[0] - history[1], history[1] - history[2]
    rho = second / first
    plain = first.abs() > 1e-4  # where single precision leaves enough of the differences
    assert float(rho[plain].min()) > 0.49
    assert float(rho[plain].max()) < 1.0
    exact = first * (rho**-3 - 1) / (1 - rho)
    steady = plain & (rho < 0.95)
    assert torch.allclose(exact[steady], made.residual.double()[steady], rtol=2e-2, atol=1e-4)
    distance = made.residual.double().abs() / (1 - rho.clamp(max=0.99) ** 3)
    steady &= made.residual.abs() > 1e-3
    assert float(distance[steady].min()) > 0.8e-3
    assert float(distance[steady].max()) < 0.11
    assert float((made.residual > 0).double().mean()) == pytest.approx(0.5, abs=0.02)


def test_best_coefficient_minimises_the_absolute_error():
    draw = generator(3)
    feature = torch.randn(501, generator=draw, dtype=torch.float64)
    target = 0.7 * feature + torch.randn(501, generator=draw, dtype=torch.float64) ** 3
    found = best_coefficient(feature, target)
    error = lambda c: float((target - c * feature).abs().sum())  # noqa: E731
    best = minimize_scalar(error, bounds=(-3, 3), method="bounded", options={"xatol": 1e-10})
    assert error(found) <= best.fun + 1e-9
    assert found == pytest.approx(best.x, abs=1e-2)
    assert best_coefficient(torch.zeros(4), torch.ones(4)) == 0.0
    assert best_coefficient(torch.ones(3), torch.tensor([1.0, 2.0, 30.0])) == 2.0


def test_judge_by_lines():
    """On straight lines extrapolation and both coefficients are exact: 3, and 3 / 14 of the whole movement."""
    said = judge(extrapolate, linear(500))
    assert said["mae"] == said["mae_extrapolation"] < 1e-7
    assert said["coefficient"] == pytest.approx(3 / 14, rel=1e-3)
    assert said["step_coefficient"] == pytest.approx(3, rel=1e-3)
    assert max(said["mae_coefficient"], said["mae_step"]) < 1e-6
    assert said["mae_still"] == pytest.approx(float(linear(500).residual.abs().mean()))
    assert said["windows"] == 500


def test_training_learns_lines_and_repeats():
    settings = PredictorTraining(epochs=6, batch_size=128, lr=3e-3)
    windows, fresh = linear(6000), linear(1000, seed=1)
    seen = []
    net = train_predictor(windows, settings, lambda epoch, mae: seen.append((epoch, mae)))
    assert [epoch for epoch, _ in seen] == list(range(1, 7))
    assert seen[-1][1] < seen[0][1]
    said = judge(net, fresh)
    assert said["mae"] < 0.15 * said["mae_still"]
    first, again = (train_predictor(fresh, QUICK) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    other = train_predictor(fresh, PredictorTraining(epochs=2, batch_size=64, seed=1))
    assert not torch.equal(first.join.weight, other.join.weight)


def test_dense_biases_stay_zero_and_the_others_learn():
    net = train_predictor(linear(500), QUICK)
    held = {name for name, p in net.named_parameters() if name.endswith("bias") and ".act." not in name}
    assert len(held) == 7
    parameters = dict(net.named_parameters())
    assert all(not bool(parameters[name].any()) for name in held)
    assert bool(parameters["differences.act.a.bias"].any())
    assert not any(p.requires_grad for p in net.parameters())


def test_synthetic_histories_are_a_share_of_what_is_seen():
    """Trained on lines alone a predictor cannot know curves; half exponentials, it knows more."""
    lines, curves = linear(3000), exponential_windows(2000, generator(9), rho=(0.5, 0.7))
    plain = PredictorTraining(epochs=5, batch_size=128, lr=3e-3)
    half = PredictorTraining(epochs=5, batch_size=128, lr=3e-3, synthetic=0.5)
    errors = [judge(train_predictor(lines, settings), curves)["mae"] for settings in (plain, half)]
    assert errors[1] < 0.9 * errors[0]


@pytest.fixture
def stored(tmp_path):
    """Three histories of straight lines in a store, with all operation types."""
    store, keys = ContentStore(tmp_path), ["a1", "b2", "c3"]
    for seed, key in enumerate(keys):
        draw = generator(seed)
        shapes = {"conv": (40, 1, 1, 1), "fc": (8, 5), "bias": (40,)}
        weights = {}
        for name, shape in shapes.items():
            start, step = torch.randn(shape, generator=draw), 0.01 * torch.randn(shape, generator=draw)
            weights[name] = torch.stack([start + k * step for k in range(20)])
        store.put(KIND, key, weights, {})
    return store, keys


def test_windows_come_from_the_store(stored):
    store, keys = stored
    found = cut_windows(keys, store, QUICK)
    assert {kind: len(windows) for kind, windows in found.items()} == dict.fromkeys(KINDS, 180)
    again = cut_windows(keys, store, QUICK)
    assert all(torch.equal(found[kind].history, again[kind].history) for kind in KINDS)
    with pytest.raises(UserError, match="d4 is not in"):
        cut_windows([*keys, "d4"], store, QUICK)


def test_report_has_all_kinds_and_all_controls(stored):
    store, keys = stored
    said = []
    predictors, report = train_all(keys[:2], keys[2:], store, QUICK, said.append)
    assert set(predictors) == set(report) == set(KINDS)
    for kind in KINDS:
        assert report[kind]["training_windows"] == 120
        assert report[kind]["held_out"]["windows"] == 60
        assert report[kind]["exponential"]["windows"] == 20_000
        assert report[kind]["still"] >= 0
        assert report[kind]["held_out"] == judge(predictors[kind], cut_windows(keys[2:], store, QUICK)[kind])
    assert len(said) == 3 * (1 + QUICK.epochs)


def test_missing_kinds_are_refused(stored):
    store, keys = stored
    store.put(KIND, "dense", {"fc": torch.randn(20, 3, 3)}, {})
    with pytest.raises(UserError, match="conv weights"):
        train_all(keys, ["dense"], store, QUICK)


def test_the_job_writes_predictors_and_how_they_were_made(tmp_path, capsys):
    main = runpy.run_path(str(JOB))["main"]
    family = {"dataset": {"name": "digits", "train_size": 100}, "model": "lenet5", "epochs": 17, "lr": [1e-3, 1e-2]}
    spec = {
        "name": "small",
        "families": [family, {**family, "held_out": True}],
        "training": {"windows": 40, "epochs": 1},
    }
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    command = [str(tmp_path / "spec.yaml"), "--results", str(tmp_path / "h"), "--out", str(tmp_path / "p.safetensors")]
    assert main(command) == 2
    assert "run jobs/collect_histories.py first" in capsys.readouterr().err
    for run in plan_histories(spec).all:
        collect(run, ContentStore(tmp_path / "h"), None)
    assert main(command) == 0
    made = yaml.safe_load((tmp_path / "p.yaml").read_text())
    assert made["spec"] == spec
    assert made["histories"] == {"trained_on": 1, "held_out": 1}
    predictors = load_predictors(tmp_path / "p.safetensors")
    windows = exponential_windows(20_000, torch_generator("exponential", 0))
    for kind in KINDS:
        assert made["validation"][kind]["exponential"]["mae"] == pytest.approx(
            judge(predictors[kind], windows)["mae"], rel=1e-3
        )
