from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from raybench.errors import UserError
from raybench.leaderboard.query import build_leaderboard, load_leaderboard, load_trials, pareto, write_leaderboard
from raybench.leaderboard.schema import SEARCHES_SCHEMA, check_row, trial_schema
from raybench.leaderboard.store import ResultStore

SEEDS = range(4)
RNG = np.random.default_rng(7)


def _fill(row, distance, gap, seconds, retrained=0.5, **changes):
    """A row with all three metrics; ``distance`` is a pair metric, so it has neither retrained value nor gap."""
    values = {"distance": distance, "unlearn_s": seconds, "retrain_s": 10.0, "speedup": 10.0 / seconds}
    values |= {"forget_accuracy": retrained + gap, "forget_accuracy_retrained": retrained, "forget_accuracy_gap": gap}
    values |= {"retain_loss": 0.1, "retain_loss_retrained": 0.2, "retain_loss_gap": -0.1}
    return row | values | {"gates": '{"retain":true,"changed":true}', "forward_passes": 100.0} | changes


@pytest.fixture
def rows(make_row):
    """Four train seeds; two methods with two unlearn seeds, a skipped and a half-failed one, and the references."""
    out = []
    for t in SEEDS:
        wobble = 0.002 * t
        out.append(_fill(make_row(method="original", phase="reference", train_seed=t), 0.4 + wobble, 0.45, 20.0))
        for gold in range(3):
            row = make_row(method="retrain", phase="reference", train_seed=t, unlearn_seed=gold)
            gap = 0.0 if gold == 0 else (-1) ** gold * (0.01 + 0.001 * t)
            out.append(_fill(row, abs(gap), gap, 10.0))
        for u in range(2):
            at = {"train_seed": t, "unlearn_seed": u, "selected_on": "retrained", "tuned_here": t == 0}
            hparams = {"hparams": '{"lr":0.1}'}
            out.append(_fill(make_row(**at, **hparams), 0.1 + wobble + 0.01 * u, -0.1, 1.0 + t + u))
            slow = make_row(method="slow", **at)
            out.append(_fill(slow, 0.2 + wobble, 0.2, 50.0, gates='{"retain":true,"changed":null}'))
        half = make_row(method="half", train_seed=t)
        if t == 3:
            half |= {"status": "failed", "reason": "RuntimeError: out of memory"}
            out.append(half)
        else:
            out.append(_fill(half, 0.05, 0.0, 0.5))
        skipped = make_row(method="never", train_seed=t, status="skipped", reason="needs classes")
        out.append(skipped)
        gates = '{"retain":%s}' % ("false" if t == 2 else "true")
        out.append(_fill(make_row(method="wrecker", train_seed=t), 0.01, 0.0, 0.1, gates=gates))
    return out


@pytest.fixture
def searches():
    line = json.dumps({"dataset": "mnist", "model": "lenet5", "scenario": "class(0)", "method": "finetune"})
    # The third record is an equal suggestion: it shares the first one's trial, which is charged once.
    ids = ["s0", "s1", "s0", "not run yet"]
    base = {"search_id": "a", "line": line, "round": 0, "train_seed": 0, "hparams": "{}"}
    return [base | {"index": i, "trial_id": trial} for i, trial in enumerate(ids)]


@pytest.fixture
def folder(tmp_path, rows, searches, metrics, make_row):
    store = ResultStore.open_for_writing(tmp_path / "run", metrics)
    store.append(rows[::-1])
    for i in range(2):
        store.append([make_row(phase="search", trial_id=f"s{i}", unlearn_s=3.0 + i, retrain_s=10.0)])
    store.append([make_row(phase="search", trial_id="of nobody", unlearn_s=1000.0)])
    store.append_searches(searches)
    return store.folder.path


@pytest.fixture
def lines(folder):
    return load_leaderboard(folder).set_index("method", drop=False)


def test_numbers_equal_a_group_by_done_by_hand(folder, lines):
    raw = pd.concat([pd.read_parquet(part) for part in (folder / "trials").glob("*.parquet")])
    final = raw[(raw["method"] == "finetune") & (raw["phase"] == "final")]
    for column in ("distance", "forget_accuracy", "forget_accuracy_gap", "retain_loss", "unlearn_s"):
        means = final.groupby("train_seed")[column].mean()
        half = stats.t.ppf(0.975, 3) * stats.sem(means)
        line = lines.loc["finetune"]
        assert line[column] == pytest.approx(means.mean())
        assert line[f"{column}_lo"] == pytest.approx(means.mean() - half)
        assert line[f"{column}_hi"] == pytest.approx(means.mean() + half)
    # (1 + 2)/2, (2 + 3)/2, ... = 1.5, 2.5, 3.5, 4.5
    assert lines.loc["finetune", "unlearn_s"] == pytest.approx(3.0)
    assert lines.loc["finetune", "distance"] == pytest.approx(0.1 + 0.003 + 0.005)
    assert lines.loc["finetune", "forget_accuracy_retrained"] == pytest.approx(0.5)
    assert lines.loc["finetune", "speedup"] == pytest.approx(np.mean([10 / s for s in (1, 2, 2, 3, 3, 4, 4, 5)]))
    assert lines.loc["finetune", ["n", "status", "hparams"]].tolist() == [4, "ok", '{"lr":0.1}']
    assert lines.loc["finetune", "tuned_here"] == pytest.approx(0.25)
    assert lines.loc["finetune", "kind"] == "method"


def test_one_line_each_and_references_apart(lines):
    assert sorted(lines.index) == ["finetune", "half", "never", "original", "retrain", "slow", "wrecker"]
    assert lines.loc["original", "kind"] == lines.loc["retrain", "kind"] == "reference"
    assert lines["tuning_s"].drop("finetune").eq(0).all()


def test_tuning_is_the_searchs_seconds_and_the_retraining_it_used(lines):
    assert lines.loc["finetune", "tuning_s"] == pytest.approx(3.0 + 4.0 + 10.0)


def test_a_search_on_validation_pays_no_retraining(rows, searches, metrics, make_row):
    trials = [row | {"selected_on": "validation"} for row in rows if row["method"] == "finetune"]
    trials += [make_row(phase="search", trial_id=f"s{i}", unlearn_s=3.0, retrain_s=10.0) for i in range(2)]
    table = _build(trials, metrics, searches)
    assert table["tuning_s"].to_pylist() == [pytest.approx(6.0)]


def test_floor_is_the_spread_between_golds(lines):
    # |gap| of the golds 1 and 2 is 0.01 + 0.001 t at every train seed; signs cancel in the line's own gap.
    per_seed = [0.01 + 0.001 * t for t in SEEDS]
    hi = stats.t.interval(0.95, 3, loc=np.mean(per_seed), scale=stats.sem(per_seed))[1]
    for method in lines.index:
        assert lines.loc[method, "forget_accuracy_floor"] == pytest.approx(np.mean(per_seed))
        assert lines.loc[method, "forget_accuracy_floor_hi"] == pytest.approx(hi)
        assert lines.loc[method, "distance_floor"] == pytest.approx(np.mean(per_seed))
    assert lines.loc["retrain", "forget_accuracy_gap"] == pytest.approx(0.0, abs=1e-12)
    assert lines.loc["retrain", "distance"] == pytest.approx(np.mean(per_seed))
    assert lines.loc["retrain", "n"] == 4


def test_without_a_second_gold_the_reference_stands_and_floors_are_null(rows, metrics):
    table = _build([r for r in rows if r["method"] != "retrain" or r["unlearn_seed"] == 0], metrics)
    lines = table.to_pandas().set_index("method")
    assert lines.loc["retrain", "distance"] == 0.0
    assert lines["distance_floor"].isna().all()
    assert table["unresolved"].null_count == table.num_rows


def test_status_counts_reasons_and_gates(lines):
    assert lines.loc["half", "status"] == "failed"
    assert json.loads(lines.loc["half", "status_counts"]) == {"ok": 3, "failed": 1}
    assert lines.loc["half", "reason"] == "1 of 4 failed: RuntimeError: out of memory"
    assert lines.loc["half", "n"] == 3
    assert lines.loc["half", "distance"] == pytest.approx(0.05)
    assert lines.loc["never", ["status", "reason", "n"]].tolist() == ["skipped", "needs classes", 0]
    assert math.isnan(lines.loc["never", "distance"])
    assert json.loads(lines.loc["wrecker", "gates"]) == {"retain": False}
    assert json.loads(lines.loc["finetune", "gates"]) == {"retain": True, "changed": True}
    assert json.loads(lines.loc["slow", "gates"]) == {"retain": True, "changed": None}


def test_ranks_and_front_leave_out_references_failures_and_gated_lines(lines):
    assert lines["rank_group"].dropna().to_dict() == {"finetune": 1, "slow": 2}
    assert lines.index[lines["on_pareto_front"]].tolist() == ["finetune"]
    assert not lines["unresolved"].any()


def test_front_probability_is_over_the_seeds_of_the_lines_that_compete(rows, lines, metrics):
    found = lines["front_probability"].dropna().to_dict()
    # Half has a failed seed and wrecker breaks a gate; slow is slower and farther on every seed.
    assert found == {"finetune": 1.0, "slow": 0.0}
    changed = [row | {"distance": 0.01} if (row["method"], row["train_seed"]) == ("slow", 3) else row for row in rows]
    schema = trial_schema(metrics)
    trials = pa.Table.from_pylist([check_row(row, schema) for row in changed], schema=schema).to_pandas()
    frame = build_leaderboard(trials, SEARCHES_SCHEMA.empty_table().to_pandas(), metrics).to_pandas()
    # Slow's mean distance is below finetune's only where seed 3 is drawn often enough: k of 4 draws, each 1/4.
    found = frame.set_index("method")["front_probability"].dropna().to_dict()
    drawn = [sum(_is_nearer(draw) for draw in itertools.product(range(4), repeat=4)) / 256]
    assert found["finetune"] == 1.0
    assert found["slow"] == pytest.approx(drawn[0], abs=3 * math.sqrt(drawn[0] * (1 - drawn[0]) / 2000))


def _is_nearer(draw):
    slow = [0.01 if t == 3 else 0.2 + 0.002 * t for t in draw]
    return sum(slow) < sum(0.1 + 0.002 * t + 0.005 for t in draw)


def test_front_keeps_trade_offs_and_ties_per_problem_and_device(make_row, metrics):
    def method(name, distance, seconds, **changes):
        return _fill(make_row(method=name, **changes), distance, 0.0, seconds)

    trials = [method("a", 0.1, 5.0), method("b", 0.2, 1.0), method("c", 0.2, 5.0), method("d", 0.1, 5.0)]
    trials += [method("c", 0.9, 9.0, scenario="random(0.1)")]
    # Seconds of a GPU do not beat seconds of a CPU.
    trials += [method("e", 0.01, 0.01, device_type="cuda", variant="cuda")]
    frame = _build(trials, metrics).to_pandas()
    expected = {("a", "class(0)"), ("b", "class(0)"), ("d", "class(0)"), ("e", "class(0)"), ("c", "random(0.1)")}
    marked = frame[frame["on_pareto_front"]]
    assert set(zip(marked["method"], marked["scenario"], strict=True)) == expected
    found = pareto(frame)
    assert set(zip(found["method"], found["scenario"], strict=True)) == expected
    by_passes = pareto(frame, cost="forward_passes", loss="distance")
    assert set(by_passes[by_passes["device_type"] == "cpu"]["method"]) == {"a", "d", "c"}
    with pytest.raises(UserError, match="column must be a registered name, got 'unlern_s'; did you mean unlearn_s"):
        pareto(frame, cost="unlern_s")


def test_two_train_seeds_give_no_rank_unless_forced(rows, metrics):
    few = [row for row in rows if row["train_seed"] < 2]
    assert _build(few, metrics)["rank_group"].null_count == 7
    ranked = _build(few, metrics, forced=True).to_pandas().set_index("method")["rank_group"].dropna()
    # Distances 0.01, 0.05, 0.106, 0.2; in these two seeds nothing failed and no gate broke.
    assert ranked.to_dict() == {"wrecker": 1, "half": 2, "finetune": 3, "slow": 4}


def test_where_doing_nothing_is_within_the_floor_nobody_is_ranked(rows, metrics):
    # The floor's mean is 0.0115 and its upper end 0.0136: what counts is the upper end.
    same = [row | {"distance": 0.0125} if row["method"] == "original" else row for row in rows]
    table = _build(same, metrics)
    assert table["unresolved"].to_pylist() == [True] * 7
    assert table["rank_group"].null_count == 7
    above = [row | {"distance": 0.02} if row["method"] == "original" else row for row in rows]
    assert _build(above, metrics)["unresolved"].to_pylist() == [False] * 7


def test_a_cell_run_again_with_a_better_setting_counts_once(make_row, metrics):
    old = [_fill(make_row(train_seed=t, hparams='{"lr":1}'), 0.5, 0.0, 1.0) for t in SEEDS]
    new = [_fill(make_row(train_seed=t, hparams='{"lr":2}'), 0.1, 0.0, 1.0) for t in SEEDS]
    (line,) = _build(old + new, metrics).to_pylist()
    assert (line["distance"], line["n"], line["hparams"]) == (pytest.approx(0.1), 4, '{"lr":2}')
    bumped = [_fill(make_row(method_version=2), 0.3, 0.0, 1.0)]
    (line,) = _build(bumped + old, metrics).to_pylist()
    assert (line["distance"], line["n"]) == (pytest.approx(0.3), 1)


def test_variants_are_lines_of_their_own(make_row, metrics):
    table = _build([_fill(make_row(variant=v), 0.1, 0.0, 1.0) for v in ("", "knee")], metrics)
    assert table["variant"].to_pylist() == ["", "knee"]


def test_protocol_versions_are_not_mixed(make_row, metrics):
    with pytest.raises(UserError, match="one protocol version, got 1, 2; give the new runs"):
        _build([make_row(), make_row(train_seed=1, protocol="2")], metrics)


def test_written_once_and_then_left_alone(folder, make_row, metrics):
    path = folder / "leaderboard.parquet"
    write_leaderboard(folder)
    first = (path.read_bytes(), path.stat().st_ino)
    write_leaderboard(folder)
    ResultStore(folder).compact()
    write_leaderboard(folder)
    assert (path.read_bytes(), path.stat().st_ino) == first
    plain = pd.read_parquet(path)
    pd.testing.assert_frame_equal(plain, load_leaderboard(folder))
    assert json.loads(pq.read_schema(path).metadata[b"raybench.metrics"])["retain_loss"]["unit"] == "nats"
    ResultStore.open_for_writing(folder, metrics).append([_fill(make_row(train_seed=9), 0.3, 0.0, 1.0)])
    write_leaderboard(folder)
    assert path.read_bytes() != first[0]
    path.write_bytes(b"damaged")
    write_leaderboard(folder)
    assert len(pd.read_parquet(path)) == 7


def test_a_folder_with_only_the_leaderboard_is_read(folder, tmp_path):
    write_leaderboard(folder)
    (tmp_path / "shipped").mkdir()
    (tmp_path / "shipped" / "leaderboard.parquet").write_bytes((folder / "leaderboard.parquet").read_bytes())
    pd.testing.assert_frame_equal(load_leaderboard(tmp_path / "shipped"), load_leaderboard(folder))
    assert load_leaderboard(tmp_path / "shipped").attrs["metrics"]["retain_loss"]["unit"] == "nats"


def test_folders_without_rows_say_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"must exist, got .*; run an experiment"):
        load_trials(tmp_path / "nowhere")
    with pytest.raises(UserError, match="must hold rows in trials/"):
        load_leaderboard(tmp_path)
    assert len(load_trials(tmp_path)) == 0


def test_attempts(folder, make_row, metrics):
    before = len(load_trials(folder))
    ResultStore.open_for_writing(folder, metrics).append([make_row(phase="search", trial_id="s0", attempt=1)])
    assert len(load_trials(folder)) == before
    assert len(load_trials(folder, attempts=True)) == before + 1


def test_the_order_of_rows_does_not_matter(rows, metrics):
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    first, second = _build(rows, metrics).to_pandas(), _build(shuffled, metrics).to_pandas()
    pd.testing.assert_frame_equal(first, second)


def _build(rows, metrics, searches=(), forced=False) -> pa.Table:
    from raybench.leaderboard.schema import SEARCHES_SCHEMA, check_row, trial_schema

    schema = trial_schema(metrics)
    trials = pa.Table.from_pylist([check_row(row, schema) for row in rows], schema=schema).to_pandas()
    found = pa.Table.from_pylist(list(searches), schema=SEARCHES_SCHEMA).to_pandas()
    return build_leaderboard(trials, found, metrics, forced=forced)
