"""Figures from rows: what the tables behind them hold, which apply, and that the files are there and stay the same."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
import pytest
from matplotlib.figure import Figure

from raybench.leaderboard.figure_data import Frames, Skip, curves, finals_of, intervals, order, sequences, swept
from raybench.leaderboard.figures import FIGURES, STYLE, draw_all

SEEDS = (0, 1, 2)
CELL = {"dataset": "mnist", "model": "lenet5", "scenario": "class(0)"}


def final(
    method: str, seed: int, variant: str = "", hparams: dict[str, Any] | None = None, **values: Any
) -> dict[str, Any]:
    row = {**CELL, "method": method, "variant": variant, "phase": "final", "status": "ok", "train_seed": seed}
    row |= {"trial_id": f"{method} {variant} {seed}", "unlearn_seed": 0, "hparams": json.dumps(hparams or {})}
    row |= {"reported": None, "test_accuracy": 0.9 + 0.01 * seed, "test_accuracy_forgotten": 0.1 * seed}
    row |= {"forget_accuracy": 0.1, "test_accuracy_retrained": 0.95, "test_accuracy_forgotten_retrained": 0.0}
    return row | values


def board(method: str, **values: Any) -> dict[str, Any]:
    line = {**CELL, "method": method, "variant": "", "kind": "method", "unlearn_s": 2.0, "unlearn_s_lo": -1.0}
    line["unlearn_s_hi"] = 5.0
    for name, value in (("test_accuracy", 0.95), ("test_accuracy_forgotten", 0.1), ("forget_accuracy", 0.12)):
        line |= {name: value, f"{name}_lo": value - 0.05, f"{name}_hi": value + 0.05}
    return line | values


LEADERBOARD = [
    board("original", kind="reference", unlearn_s=0.0),
    board("retrain", kind="reference", unlearn_s=20.0, unlearn_s_hi=30.0),
    board("deepclean"),
    board("gkt", unlearn_s=9.0, unlearn_s_lo=math.nan, unlearn_s_hi=math.nan),
]


def frames(rows: list[dict[str, Any]], points: list[tuple[str, str, int, float]] | None = None) -> Frames:
    series = pd.DataFrame(points or [], columns=["trial_id", "name", "step", "y"])
    return Frames(pd.DataFrame(LEADERBOARD), pd.DataFrame(rows), series)


def sweep_of_gamma() -> list[dict[str, Any]]:
    return [
        final(method, seed, f"gamma={gamma:g}", {"gamma": gamma, "lr": 0.1 * gamma},
              reported=json.dumps({"selected": 0.3 / gamma}), test_accuracy=0.9 + 0.01 * seed + 0.001 * gamma)
        for method in ("deepclean", "random_mask") for gamma in (0.5, 2.0, 10.0) for seed in SEEDS
    ]  # fmt: skip


def map_of_lambdas() -> list[dict[str, Any]]:
    grid = itertools.product((1e-5, 1e-3, 1e-1), (0.1, 10.0), SEEDS)
    return [
        final("mnemonic", seed, f"t_mix=0.1, lambda1={one:g}, lambda2={two:g}", {"lambda1": one, "lambda2": two},
              test_accuracy_forgotten=0.0 if one >= 1e-3 else 0.9)
        for one, two, seed in grid
    ]  # fmt: skip


def real_images() -> list[dict[str, Any]]:
    same = {"lambda1": 0.001, "lambda2": 10.0}
    rows = [final("mnemonic_data", s, f"n={n}", {**same, "n": n}) for n in (1, 10, 100) for s in SEEDS]
    rows += [final("mnemonic", s, v, same) for v in ("", "normal codes") for s in SEEDS]
    return rows + [final("mnemonic", s, "other lambdas", {"lambda1": 1.0, "lambda2": 1.0}) for s in SEEDS]


def cutoffs() -> tuple[list[dict[str, Any]], list[tuple[str, str, int, float]]]:
    rows = [
        final("gkt", seed, f"official, entropy_cutoff={cutoff}", {"entropy_cutoff": cutoff})
        for cutoff in (None, 0.1, 0.6) for seed in SEEDS
    ]  # fmt: skip
    points = []
    for row, step in itertools.product(rows, (10, 20, 30, 40)):
        if step < 40 or row["train_seed"] > 0:  # seed 0 stops earlier
            y = 0.02 * step + 0.02 * row["train_seed"] + (row["trial_id"].count("None") > 0) * 0.1
            for name in ("test_accuracy", "test_forgotten_accuracy", "forget_accuracy"):
                points.append((row["trial_id"], name, step, y if name == "test_accuracy" else y / 3))
    return rows, points


def requests_in_turn() -> list[dict[str, Any]]:
    return [
        final(method, seed, scenario=f"repeated(fraction=0.02, requests={count})", distance=0.01 * count * slope,
              unlearn_s=float(count), trial_id=f"{method} {seed} {count}")
        for method, slope in (("finetune", 1.0), ("ssd", 2.0)) for count in (1, 2, 5) for seed in SEEDS
    ]  # fmt: skip


def draw(name: str, given: Frames) -> dict[str, Figure]:
    with mpl.rc_context(STYLE):
        return dict(FIGURES[name](given))


# The tables


def test_intervals_are_over_train_seeds() -> None:
    rows = pd.DataFrame([final("m", seed, unlearn_seed=u, x=seed + 0.1 * u) for seed in SEEDS for u in (0, 1)])
    (found,) = intervals(rows, ["method"], "x").to_dict("records")
    assert found["mean"] == pytest.approx(1.05)
    assert found["hi"] - found["mean"] == pytest.approx(2.484, abs=1e-3)
    assert found["seeds"] == 3
    assert not len(intervals(rows.assign(x=None), ["method"], "x"))
    assert not len(intervals(rows, ["method"], "absent"))


def test_families_are_variants_without_the_swept_part() -> None:
    rows = pd.DataFrame([*map_of_lambdas(), final("mnemonic", 0, "normal codes", {"lambda1": 1.0, "lambda2": 1.0})])
    ((title, group),) = swept(rows, ["lambda1", "lambda2"])
    assert title == "mnist / lenet5 / class(0) / t_mix=0.1"
    assert len(group) == 18
    with pytest.raises(Skip, match="fewer than two values of lambda1"):
        list(swept(rows[rows["variant"] == "normal codes"], ["lambda1"]))


def test_a_swept_name_is_found_behind_the_device_type() -> None:
    rows = [final("mnemonic_data", 0, f"{device}, n {n}", {"n": n}) for device in ("cpu", "cuda") for n in (1, 5)]
    titles = [title for title, _ in swept(pd.DataFrame(rows), ["n"])]
    assert titles == [f"mnist / lenet5 / class(0) / {device}" for device in ("cpu", "cuda")]


def test_null_is_a_value_of_a_sweep() -> None:
    rows, points = cutoffs()
    ((title, group),) = swept(pd.DataFrame(rows), ["entropy_cutoff"])
    assert title.endswith("/ official")
    assert order(group["entropy_cutoff"].tolist()) == [0.1, 0.6, None]
    table = curves(group, frames(rows, points).series, "test_accuracy", ["entropy_cutoff"])
    assert sorted(table["step"].unique()) == [10, 20, 30], "at step 40 a seed is missing"
    ungated = table[table["entropy_cutoff"].isna() & (table["step"] == 10)]
    assert ungated["mean"].item() == pytest.approx(0.2 + 0.02 + 0.1)


def test_only_good_finals_count_and_the_latest_setting_of_a_cell() -> None:
    rows = [final("m", 0, trial_id="a"), final("m", 0, trial_id="b"), final("m", 1, status="failed")]
    rows += [final("m", 1, phase="search"), final("other", 1)]
    assert finals_of(frames(rows), "m")["trial_id"].tolist() == ["b"]
    with pytest.raises(Skip, match="no final rows of absent"):
        finals_of(frames(rows), "absent")


# The figures


def test_gamma_has_accuracy_and_share_of_weights() -> None:
    (figure,) = draw("gamma", frames(sweep_of_gamma())).values()
    top, bottom = figure.axes
    assert bottom.get_xscale() == "log"
    stay = next(c for c in top.containers if c.get_label() == "remaining data (test)")
    assert stay[0].get_xdata().tolist() == [0.5, 2.0, 10.0]
    assert stay[0].get_ydata().tolist() == pytest.approx([91.05, 91.2, 92.0])
    assert bottom.containers[0][0].get_ydata().tolist() == pytest.approx([60.0, 15.0, 3.0])
    assert any("random mask" in str(c.get_label()) for c in top.containers)


def test_lambda_map_shows_both_numbers_of_every_cell() -> None:
    (figure,) = draw("lambda_map", frames(map_of_lambdas())).values()
    forgotten, kept = figure.axes[:2]
    assert forgotten.images[0].get_array().ravel().tolist() == pytest.approx([10, 100, 100] * 2)
    assert {text.get_text() for text in forgotten.texts} == {"10", "100"}
    assert [label.get_text() for label in kept.get_xticklabels()] == ["1e-05", "0.001", "0.1"]


def test_images_or_codes_takes_codes_of_the_same_lambdas() -> None:
    (figure,) = draw("images_or_codes", frames(real_images())).values()
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == ["1", "10", "100", "A", "B"]
    assert "B: normal codes" in figure.get_supxlabel()
    assert "other" not in figure.get_supxlabel()


def test_images_or_codes_shows_lines_that_tuned_lambdas_of_their_own() -> None:
    def move(text: str) -> str:
        return json.dumps({**json.loads(text), "lambda1": 0.7})

    rows = real_images()
    rows = [{**row, "hparams": move(row["hparams"])} if row["method"] == "mnemonic" else row for row in rows]
    (figure,) = draw("images_or_codes", frames(rows)).values()
    assert "other" in figure.get_supxlabel()


def test_entropy_shows_retain_and_forget() -> None:
    (figure,) = draw("entropy", frames(*cutoffs())).values()
    ends, stay, go = figure.axes
    assert [label.get_text() for label in ends.get_xticklabels()] == ["0.1", "0.6", "none"]
    assert len(ends.containers) == 2
    assert [len(axis.lines) for axis in (stay, go)] == [3, 3]
    assert stay.lines[2].get_xdata().tolist() == [10, 20, 30]


def test_path_has_a_line_per_run_and_the_references() -> None:
    rows, points = cutoffs()
    (figure,) = draw("path", frames(rows, points)).values()
    (axis,) = figure.axes
    assert sum(len(line.get_xdata()) == 4 for line in axis.lines) == 6
    assert {text.get_text() for text in axis.get_legend().get_texts()} >= {"original", "retrain"}


def test_time_has_every_line_and_the_references() -> None:
    (figure,) = draw("time", frames([final("m", 0)])).values()
    names = {text.get_text() for text in figure.axes[1].get_legend().get_texts()}
    assert names == {"deepclean", "gkt", "retrain", "original (0 s)"}


def test_too_many_lines_are_said_and_not_drawn() -> None:
    lines = [*LEADERBOARD, *(board(f"m{i}") for i in range(12))]
    with pytest.raises(Skip, match="14 lines on mnist"):
        list(FIGURES["time"](Frames(pd.DataFrame(lines), pd.DataFrame([final("m", 0)]), frames([]).series)))


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    given = frames(sweep_of_gamma() + map_of_lambdas())
    monkeypatch.setattr("raybench.leaderboard.figures.load_leaderboard", lambda _: given.leaderboard)
    monkeypatch.setattr("raybench.leaderboard.figures.load_trials", lambda _: given.trials)
    return tmp_path


def test_files_reasons_and_repeatable_bytes(results: Path) -> None:
    names, skipped = draw_all(results)
    drawn = [Path(name) for name in names]
    assert set(skipped) == {"images_or_codes", "entropy", "path", "drift"}
    assert skipped["entropy"] == "no final rows of gkt"
    assert {path.parent for path in drawn} == {results / "figures"}
    assert {path.name for path in drawn} >= {
        "gamma_mnist_lenet5_class_0.svg",
        "gamma_mnist_lenet5_class_0.png",
        "lambda_map_mnist_lenet5_class_0_t_mix_0.1.svg",
    }
    first = {path: path.read_bytes() for path in drawn}
    draw_all(results)
    assert first == {path: path.read_bytes() for path in drawn}
    assert Path(draw_all(results, str(results / "elsewhere"))[0][0]).parent == results / "elsewhere"


def test_command_says_what_is_there_and_what_is_not(cli: Any, results: Path) -> None:
    said = cli("figures", str(results))
    assert said.code == 0
    assert "gamma_mnist_lenet5_class_0.png" in said.out
    assert "skipped entropy: no final rows of gkt" in said.out


def test_command_on_no_results_is_one_line(cli: Any) -> None:
    said = cli("figures", "nowhere")
    assert said.code == 2
    assert said.err.count("\n") == 1


def test_drift_joins_the_requests_of_a_sequence() -> None:
    rows = requests_in_turn()
    ((title, group),) = sequences(pd.DataFrame([*rows, final("finetune", 0)]))
    assert title == "mnist / lenet5 / repeated(fraction=0.02)"
    assert sorted(group["requests"].unique()) == [1.0, 2.0, 5.0]
    lines = [board(m, scenario=r["scenario"], distance_floor=0.005) for r in rows[:9] for m in ("finetune", "ssd")]
    (figure,) = dict(FIGURES["drift"](Frames(pd.DataFrame(lines), pd.DataFrame(rows), pd.DataFrame()))).values()
    distance, accuracy, seconds = figure.axes
    drawn = {line.get_label(): line for line in distance.lines}
    assert list(drawn["two retrained models"].get_ydata()) == [0.5, 0.5, 0.5]
    means = [list(container.lines[0].get_ydata()) for container in distance.containers]
    assert means == [pytest.approx([1.0, 2.0, 5.0]), pytest.approx([2.0, 4.0, 10.0])]
    assert [list(c.lines[0].get_ydata()) for c in seconds.containers] == [pytest.approx([1.0, 2.0, 5.0])] * 2
    assert accuracy.get_xlabel() == "requests so far"
    with pytest.raises(Skip, match="two numbers of requests"):
        list(sequences(pd.DataFrame(rows[:3])))
