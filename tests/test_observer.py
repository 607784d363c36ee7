"""Curves: drawn at the checkpoints of finals, off the clock, and without a trace in the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from raybench.data import Pixels, Split
from raybench.leaderboard.store import ResultStore
from raybench.observer import CURVE_SAMPLES, Observer
from raybench.registry import FORGET, METHODS, MethodEntry
from raybench.run import Options, run


def finish(spec: dict[str, Any], folder: Path, **changes: Any) -> ResultStore:
    options = Options(results=str(folder / "out"), store=str(folder / "store"), serial=True, quiet=True)
    assert run(spec | changes, options=options).exit_code == 0
    return ResultStore(folder / "out")


@pytest.fixture
def ascending(make_spec: Any) -> dict[str, Any]:
    return make_spec(methods=[{"name": "gradient_ascent", "hparams": {"lr": 0.01}}], search={"trials": 2})


def test_finals_leave_curves_that_end_at_the_rows_accuracies(ascending: dict[str, Any], tmp_path: Path) -> None:
    store = finish(ascending, tmp_path)
    final = next(row for row in store.trials().to_dict("records") if row["phase"] == "final")
    series = store.series()
    assert set(series["trial_id"]) == {final["trial_id"]}, "a search draws none"
    assert set(series["name"]) == {
        "retain_accuracy", "forget_accuracy", "test_accuracy", "test_forgotten_accuracy"
    }  # fmt: skip
    for name in ("retain_accuracy", "forget_accuracy", "test_accuracy"):
        curve = series[series["name"] == name].sort_values("step")
        assert list(curve["step"]) == list(range(1, len(curve) + 1))
        assert curve["x"].is_monotonic_increasing
        assert curve["x"].iloc[-1] <= final["unlearn_s"]
        assert curve["y"].iloc[-1] == pytest.approx(final[name])


def test_a_curve_changes_no_number(ascending: dict[str, Any], tmp_path: Path) -> None:
    with_curves, without = finish(ascending, tmp_path / "a"), finish(ascending, tmp_path / "b", curves=False)
    assert len(without.series()) == 0 < len(with_curves.series())
    columns = ["trial_id", "retain_accuracy", "forget_accuracy", "test_accuracy", "forward_passes", "backward_passes"]
    first, second = (
        store.trials(columns=columns).sort_values("trial_id", ignore_index=True) for store in (with_curves, without)
    )
    assert first.equals(second)


def test_large_splits_are_sampled_always_the_same_way() -> None:
    n = 3 * CURVE_SAMPLES
    pixels = Pixels(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
    images = torch.zeros(n, 1, 1, 1, dtype=torch.uint8)
    labels = (torch.arange(n) % 10 == 0).long()
    split = Split(images, labels, torch.arange(n), pixels)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1, 2, bias=False))
    torch.nn.init.zeros_(model[1].weight)  # predicts class 0 everywhere
    points = []
    for _ in range(2):
        observer = Observer("id", {"retain": split}, lambda: 1.5)
        observer(model, 3, {"kept": 2.0, "broken": float("nan")})
        points.append(observer.points)
    assert points[0] == points[1]
    accuracy, kept, broken = points[0]
    assert accuracy == {
        "trial_id": "id",
        "name": "retain_accuracy",
        "step": 3,
        "x": 1.5,
        "y": pytest.approx(0.9, abs=0.03),
    }
    assert (kept["name"], kept["y"], broken["y"]) == ("reported_kept", 2.0, None)


def test_what_a_method_states_is_kept(make_spec: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def toy(task: Any, hp: Any) -> Any:
        with torch.no_grad():
            for p in task.model.parameters():
                p.mul_(0.9)
        pixels = torch.zeros(5, 1, 4, 4)
        pixels[3] = 2.0  # above the range: clamped
        task.report({"epsilon": 0.5}, images={"grid": pixels}, stop_reason="proxies")
        task.report({"delta": 0.25})
        return task.model

    METHODS.names()
    monkeypatch.setitem(METHODS._entries, "toy", MethodEntry("toy", toy, "toy", needs=frozenset({FORGET})))
    store = finish(make_spec(methods=["toy"]), tmp_path)
    row = next(row for row in store.trials().to_dict("records") if row["phase"] == "final")
    assert row["stop_reason"] == "proxies"
    assert row["reported"] == '{"delta":0.25,"epsilon":0.5}'
    picture = np.asarray(Image.open(tmp_path / "out" / "artifacts" / row["trial_id"] / "grid.png"))
    assert picture.shape == (2 * 5 + 1, 3 * 5 + 1, 3)  # five images in a grid of 3 x 2, a line of one pixel between
    bright = (picture == 255).all(axis=2)
    assert bright.sum() == 16
    assert bright[6:10, 1:5].all(), "the fourth image stands first in the second line"


def test_steps_count_on_over_requests() -> None:
    split = Split(
        torch.zeros(4, 1, 2, 2, dtype=torch.uint8),
        torch.zeros(4, dtype=torch.int64),
        torch.arange(4),
        Pixels(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)),
    )
    observer = Observer("t", {"retain": split}, lambda: 0.0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    for steps in ((1, 2), (1, 3), (1,)):
        for step in steps:
            observer(model, step, {})
        observer.next_request()
    assert [point["step"] for point in observer.points] == [1, 2, 3, 5, 6]
