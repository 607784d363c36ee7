"""A diffusion experiment from the spec to rows and pictures, in small; the size that ships is marked slow."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import raybench as rb
from raybench.cli import main
from raybench.data import Pixels, Split
from raybench.errors import MetricUnavailable
from raybench.metrics import _samples as samples
from raybench.metrics.forgotten_share import forgotten_share
from raybench.metrics.kid import kid
from raybench.outputs import MetricContext
from raybench.probe import Judge, Probe
from raybench.training import Recipe

JOB = Path(__file__).parents[1] / "jobs" / "diffusion_mnist.yaml"
LOOP = {"rewinds": 1, "warmup_epochs": 0, "lr": 1e-4, "augment": False}
SPEC: dict[str, Any] = {
    "name": "tiny_diffusion",
    "problems": [
        {
            "dataset": {"name": "digits", "train_size": 200, "test_size": 60},
            "models": [{"name": "ddpm_unet", "width": 8, "patch": 4}],
            "scenarios": [{"class": {"classes": [0]}}],
            "recipe": {"epochs": 3, "batch_size": 16, "optimiser": "adam", "lr": 0.01, "augment": False},
        }
    ],
    "methods": [
        {"name": "gradient_ascent", "hparams": {"epochs": 1}},  # searched
        {"name": "task_vector", "hparams": {**LOOP, "coefficient": 1.0}},
        {"name": "rewind", "hparams": LOOP},
        {"name": "finetune", "hparams": {"epochs": 1, "lr": 0.01}},
        {"name": "deepclean", "hparams": {"epochs": 1, "gamma": 1.0, "lr": 0.001, "fisher_samples": 40}},
    ],
    "metrics": ["forget_loss", "retain_accuracy", "loss_attack_auc", "forgotten_share", "kid", "judge_accuracy"],
    "seeds": {"train": [0]},
    "gold_seeds": 2,
    "search": {"trials": 1, "round_size": 1},
}


def test_from_spec_to_rows_and_pictures(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(samples, "SAMPLES", 40)
    monkeypatch.setattr(samples, "SAMPLING_STEPS", 3)
    rb.run(SPEC, results=str(tmp_path / "results"), store=str(tmp_path / "store"), serial=True)
    trials = rb.load_trials(tmp_path / "results")
    assert set(trials["status"]) == {"ok"}, trials["reason"].tolist()
    shown = trials[trials["phase"] != "search"]
    assert sorted(shown["method"]) == [
        "deepclean", "finetune", "gradient_ascent", "original", "retrain", "retrain", "rewind", "task_vector",
    ]  # fmt: skip
    assert shown["forgotten_share"].between(0.0, 1.0).all()
    assert np.isfinite(shown[["kid", "forget_loss", "distance", "distance_validation"]].to_numpy(dtype=float)).all()
    assert (shown["judge_accuracy"] > 0.9).all()
    assert shown["judge_accuracy"].nunique() == 1
    first = shown[(shown["method"] == "retrain") & (shown["unlearn_seed"] == 0)].iloc[0]
    for name in ("forgotten_share", "kid"):
        assert (shown[f"{name}_retrained"] == first[name]).all()
        np.testing.assert_allclose(shown[f"{name}_gap"], shown[name] - first[name])
    assert shown["retain_accuracy"].isna().all()
    reasons = [json.loads(text)["retain_accuracy"] for text in shown["missing"]]
    assert all("trained for denoising" in reason for reason in reasons)
    gates = [json.loads(text) for text in shown["gates"]]
    assert all(g["original_above_chance"] and g["outputs_finite"] for g in gates)
    changed = [g["outputs_changed"] for g in gates]
    assert changed.count(True) == 5
    pictures = {i: tmp_path / "results" / "artifacts" / i / "samples.png" for i in shown["trial_id"]}
    assert all(path.is_file() for path in pictures.values())
    assert len({path.read_bytes() for path in pictures.values()}) == len(pictures)  # each model drew its own
    with Image.open(next(iter(pictures.values()))) as picture:
        assert picture.size == (7 * 29 + 1, 6 * 29 + 1)  # 40 images, 7 a row


def test_a_classification_method_exits_with_2(tmp_path, capsys) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(json.dumps({**SPEC, "methods": ["scrub"]}))
    with pytest.raises(SystemExit) as stopped:
        raise SystemExit(main(["plan", str(spec)]))
    assert stopped.value.code == 2
    said = capsys.readouterr().err.strip()
    assert "got scrub, which is for classification" in said
    assert len(said.splitlines()) == 1


class Bright(torch.nn.Module):
    """A judge that calls bright images class 1 and dark ones class 0, by their mean."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.flatten(1).mean(1)
        return torch.stack([0.5 - mean, mean - 0.5], dim=1)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)


class Towards(torch.nn.Module):
    """The exact noise model of data that are one grey image."""

    def __init__(self, grey: float) -> None:
        super().__init__()
        self.grey = torch.nn.Parameter(torch.tensor(grey))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        from raybench.diffusion import ALPHA_BARS

        kept = ALPHA_BARS[t].float().view(-1, 1, 1, 1)
        return (x - kept.sqrt() * self.grey) / (1.0 - kept).sqrt()


def probe_of(grey: float) -> Probe:
    one = torch.ones(1, 1, 1, 1)
    plain = Pixels(0.0 * one, one)
    images = torch.full((20, 1, 2, 2), 204, dtype=torch.uint8)  # 0.8
    retain = Split(images, torch.ones(20, dtype=torch.int64), torch.arange(20), plain)
    model = Towards(grey)
    splits = {"retain": retain, "forget": retain}
    return Probe(model, model, model, splits, Bright, Recipe(), judge=lambda: Judge(Bright(), plain, 0.99))


@pytest.mark.parametrize(("grey", "share"), [(0.2, 1.0), (0.8, 0.0)])
def test_shares_and_kid_of_models_that_draw_one_image(grey: float, share: float, monkeypatch) -> None:
    monkeypatch.setattr(samples, "SAMPLES", 8)
    context = MetricContext(2, task="denoising", forget_classes=(0,))
    assert forgotten_share(probe_of(grey), context) == share
    # All drawn images equal, all real ones too: MMD^2 = k(a, a) + k(b, b) - 2 k(a, b) with a.b / d = grey * 0.8.
    expected = (grey**2 + 1) ** 3 + (0.8**2 + 1) ** 3 - 2 * (0.8 * grey + 1) ** 3
    assert kid(probe_of(grey), context) == pytest.approx(expected, abs=1e-4)


def test_nothing_is_forgotten_where_no_class_is() -> None:
    with pytest.raises(MetricUnavailable, match="this scenario forgets none"):
        forgotten_share(probe_of(0.5), MetricContext(2, task="denoising"))


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.skipif("RAYBENCH_DATA" not in os.environ, reason="needs MNIST: set RAYBENCH_DATA")
def test_the_digit_is_forgotten_at_full_size(tmp_path) -> None:
    rb.run(
        str(JOB), results=str(tmp_path / "r"), store=str(tmp_path / "s"), data=os.environ["RAYBENCH_DATA"], serial=True
    )
    trials = rb.load_trials(tmp_path / "r")
    assert set(trials["status"]) == {"ok"}
    assert (trials["judge_accuracy"] >= 0.99).all()
    original = trials[trials["method"] == "original"].iloc[0]
    assert original["forgotten_share"] > 0.04
    finals = trials[trials["phase"] == "final"]
    good = (finals["forgotten_share"] < 0.2 * original["forgotten_share"]) & (finals["kid"] <= 2 * original["kid"])
    assert good.any()
