"""Leaderboards made anew from rows: forced ranks, several folders in one, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from raybench.errors import UserError
from raybench.leaderboard.gathered import load_leaderboards
from raybench.leaderboard.query import load_leaderboard, write_leaderboard
from raybench.leaderboard.render import render
from raybench.leaderboard.schema import LINE, MetricInfo
from raybench.leaderboard.store import ResultStore

SHIPPED = sorted(path.parent for path in (Path(__file__).parents[2] / "results").glob("*/leaderboard.parquet"))


@pytest.fixture
def folder(tmp_path, make_row, metrics):
    """Writes a results folder: method -> distances by train seed."""

    def write(name: str, distances: dict[str, list[float]], given: Any = None, **changes: Any) -> str:
        recipe = changes.pop("recipe", {"lr": 0.1})
        store = ResultStore.open_for_writing(tmp_path / name, given or metrics)
        for method, values in distances.items():
            for seed, distance in enumerate(values):
                scenario = {"name": "class", "options": {"classes": [0]}}
                problem = {"dataset": {"name": "mnist"}, "checksum": "c0", "model": {"name": "lenet5"}}
                problem |= {"scenario": scenario, "recipe": recipe, "train_seed": seed}
                spec = {"problem": problem, "method": method, "method_version": 1, "hparams": {}, "unlearn_seed": 0}
                spec |= {"phase": "final", "training": {}, "variant": ""}
                measured = {"distance": distance, "unlearn_s": 1.0, "gates": "{}"} | changes
                store.append([make_row(method=method, train_seed=seed, spec=json.dumps(spec), **measured)])
        write_leaderboard(tmp_path / name)
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_rows_behind_the_lines_give_the_lines_again(path: Path) -> None:
    lines, again = load_leaderboard(path), load_leaderboards([path], forced=True)
    assert again.attrs == lines.attrs
    columns = [name for name in lines.columns if name != "rank_group" or (lines["n"] >= 3).all()]
    sort = list(LINE)
    pd.testing.assert_frame_equal(
        again.sort_values(sort, ignore_index=True)[columns],
        lines.sort_values(sort, ignore_index=True)[columns],
        check_dtype=False,
    )


def test_two_seeds_are_ranked_when_forced_and_marked(folder) -> None:
    path = folder("a", {"near": [0.1, 0.11], "far": [0.5, 0.51]})
    lines = load_leaderboards([path])
    assert lines["rank_group"].isna().all()
    assert "rank_forced" not in lines
    text = render(lines)
    assert "not ranked, fewer than 3 train seeds: near, far on mnist / lenet5 / class(0); --force-rank" in text
    forced = load_leaderboards([path], forced=True)
    assert dict(zip(forced["method"], forced["rank_group"], strict=True)) == {"near": 1, "far": 2}
    assert forced["rank_forced"].all()
    text = render(forced)
    assert "1 forced" in text
    assert "ranks marked forced rest on fewer than 3 train seeds and are no evidence" in text
    assert "not ranked" not in text
    assert json.loads(render(forced, "json"))[0]["rank_forced"] is True


def test_many_lines_without_a_rank_are_counted(folder) -> None:
    text = render(load_leaderboards([folder("a", {f"m{i}": [0.1 * i + 0.1] for i in range(9)})]))
    assert "3 train seeds: m0, m1, m2, m3, m4, m5 and 3 more on mnist / lenet5 / class(0); --force-rank" in text


def test_three_seeds_carry_no_mark(folder) -> None:
    forced = load_leaderboards([folder("a", {"near": [0.1, 0.11, 0.12], "far": [0.5, 0.51, 0.52]})], forced=True)
    assert forced["rank_group"].tolist() == [2, 1]
    assert not forced["rank_forced"].any()
    assert "forced" not in render(forced)


def test_folders_that_share_a_problem_are_ranked_together(folder) -> None:
    first = folder("a", {"near": [0.1, 0.11, 0.12]})
    second = folder("b", {"far": [0.5, 0.52, 0.54]})
    other = folder("c", {"far": [0.5, 0.52, 0.54]}, model="mlp")
    lines = load_leaderboards([first, second, other]).set_index(["model", "method"])
    assert lines["rank_group"].to_dict() == {("lenet5", "near"): 1, ("lenet5", "far"): 2, ("mlp", "far"): 1}
    assert lines["on_pareto_front"].to_dict() == {
        ("lenet5", "near"): True,
        ("lenet5", "far"): False,
        ("mlp", "far"): True,
    }
    assert lines["front_probability"].to_dict() == {("lenet5", "near"): 1, ("lenet5", "far"): 0, ("mlp", "far"): 1}


def test_metrics_that_one_folder_lacks_are_null_there(folder, metrics) -> None:
    first = folder("a", {"near": [0.1, 0.11, 0.12]}, given=metrics[:1])
    second = folder("b", {"near": [0.5, 0.52, 0.54]}, model="mlp", forget_accuracy=0.5)
    lines = load_leaderboards([first, second])
    assert lines["forget_accuracy"].isna().tolist() == [True, False]
    assert set(lines.attrs["metrics"]) == {metric.name for metric in metrics}


def test_the_same_trials_in_two_folders_count_once(folder, tmp_path) -> None:
    first = folder("a", {"near": [0.1, 0.11, 0.12]})
    shutil.copytree(first, tmp_path / "copy")
    lines = load_leaderboards([first, tmp_path / "copy"])
    assert lines["n"].tolist() == [3]
    assert lines["distance"].tolist() == pytest.approx([0.11])


def test_what_cannot_stand_in_one_leaderboard_is_refused(folder, metrics, tmp_path) -> None:
    first = folder("a", {"near": [0.1, 0.11, 0.12]})

    def refused(other: str, *words: str) -> None:
        with pytest.raises(UserError) as caught:
            load_leaderboards([first, other])
        assert "\n" not in str(caught.value)
        assert all(word in str(caught.value) for word in words), caught.value

    refused(folder("b", {"x": [1.0] * 3}, protocol="2", model="mlp"), "one protocol version", "got 1, 2")
    refused(folder("c", {"x": [1.0] * 3}, recipe={"lr": 0.2}), "mnist / lenet5 / class(0)", "different recipe")
    refused(folder("d", {"near": [0.2] * 3}, hparams='{"lr":1.0}'), "near", "other trials", "leave one folder out")
    newer = [MetricInfo("distance", 2, "fraction", "lower"), *metrics[1:]]
    refused(folder("e", {"x": [0.2] * 3}, given=newer, model="mlp"), "distance 1", "and 2 in")
    refused(first, "once", "drop the repeated one")
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(Path(first) / "leaderboard.parquet", alone)
    refused(str(alone), "rows in trials/", "leave that folder out")
    with pytest.raises(UserError, match="rows in trials/"):
        load_leaderboards([alone], forced=True)
