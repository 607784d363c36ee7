from __future__ import annotations

import datetime as dt
import subprocess
import sys

import pyarrow as pa
import pytest

from raybench.errors import UserError
from raybench.leaderboard import schema as s


def test_trial_schema_has_core_metrics_and_missing(metrics):
    schema = s.trial_schema(metrics)
    extra = [f"{m}{end}" for m in ("distance", "forget_accuracy", "retain_loss") for end in ("", "_retrained", "_gap")]
    assert schema.names == [*s.CORE_NAMES, *extra, "missing"]
    assert s.metrics_of(schema) == metrics
    assert schema.field("started_at").type == pa.timestamp("us", tz="UTC")
    assert not schema.field("trial_id").nullable
    assert schema.field("distance").nullable


def test_column_names_are_the_documented_ones():
    documented = """
    trial_id attempt experiment protocol dataset dataset_checksum model scenario forget_size method
    method_version variant original_kind phase train_seed unlearn_seed evaluate_seed hparams spec selected_on
    selected_by tuned_here status reason stop_reason gates unlearn_s cpu_s shared_s retrain_s speedup
    original_train_s artefact_bytes tuning_s metrics_s forward_passes backward_passes retrain_share peak_memory
    footprint exclusive threads raybench_version torch_version ray_version cuda_version device_type device_name
    device_ids node pid git_commit started_at wall_s cached reported
    """
    assert list(s.CORE_NAMES) == documented.split()


def test_comparable_leaves_out_seconds_provenance_and_attempt(metrics):
    seconds = {c.name for c in s.CORE if c.unit == "s"}
    provenance = {c.name for c in s.CORE if c.group == "provenance"}
    assert not (seconds | provenance | {"attempt", "speedup"}) & set(s.COMPARABLE)
    assert {"forward_passes", "backward_passes", "retrain_share", "hparams", "status", "gates"} <= set(s.COMPARABLE)
    assert {"distance", "forget_accuracy_gap", "missing"} <= set(s.comparable(s.trial_schema(metrics)))


@pytest.mark.parametrize("name", ["status", "distance_gap"])
def test_a_metric_name_that_is_taken_is_refused(metrics, name):
    with pytest.raises(ValueError, match=name):
        s.trial_schema([*metrics, s.MetricInfo(name)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"forget_acuracy": 1.0}, "lacks: 'forget_acuracy'; did you mean forget_accuracy"),
        ({"trial_id": None}, "must have trial_id"),
        ({"train_seed": 1.5}, "'train_seed' must be int64, got 1.5"),
        ({"distance": "small"}, "'distance' must be double"),
        ({"hparams": "{"}, "'hparams' must be JSON"),
        ({"phase": "tune"}, "phase must be one of search, final, reference, oracle, got 'tune'"),
        ({"status": "done"}, "status must be one of"),
        ({"status": "failed"}, "status failed must have a reason"),
    ],
)
def test_check_row_says_what_is_wrong(metrics, make_row, changes, message):
    with pytest.raises(ValueError, match=message):
        s.check_row(make_row(**changes), s.trial_schema(metrics))


def test_check_row_fills_and_turns_nan_into_null(metrics, make_row):
    started = dt.datetime(2025, 1, 2, tzinfo=dt.UTC)
    row = s.check_row(make_row(distance=float("nan"), started_at=started), s.trial_schema(metrics))
    assert row["distance"] is None
    assert row["peak_memory"] is None
    assert set(row) == set(s.trial_schema(metrics).names)


def test_a_search_names_its_line():
    record = {"search_id": "a", "line": '{"dataset": "d", "model": "m"}', "round": 0, "index": 0}
    record |= {"train_seed": 0, "trial_id": "t", "hparams": "{}"}
    with pytest.raises(ValueError, match="must name scenario, method"):
        s.check_row(record, s.SEARCHES_SCHEMA)


def test_unify_keeps_every_column_metric_and_protocol():
    first = s.trial_schema([s.MetricInfo("a", 1)], "1")
    second = s.trial_schema([s.MetricInfo("a", 2), s.MetricInfo("b", 1, "nats", "lower")], "2")
    both = s.unify([first, second], "trials")
    assert {"a", "b_gap", "missing"} <= set(both.names)
    assert s.metrics_of(both) == [s.MetricInfo("a", 2), s.MetricInfo("b", 1, "nats", "lower")]
    assert both.metadata[b"raybench.protocol"] == b"1,2"


def test_newer_and_foreign_files_are_refused_politely():
    newer = pa.schema([], metadata={b"raybench.schema_version": b"99", b"raybench.kind": b"trials"})
    with pytest.raises(UserError, match="x has schema version 99, this raybench reads up to 1; upgrade raybench"):
        s.check_version(newer, "trials", "x")
    with pytest.raises(UserError, match="must be a raybench trials file"):
        s.check_version(pa.schema([]), "trials", "x")


def test_reading_a_leaderboard_imports_neither_torch_nor_ray():
    code = "import sys, raybench.leaderboard.query, raybench.leaderboard.lock\n"
    code += "sys.exit(bool({'torch', 'ray', 'optuna'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_an_attack_s_number_is_stands_in_the_metadata():
    words = {"attack": "threshold", "score": "loss", "fit_on": "nothing", "apply_to": "D_f", "reported_quantity": "AUC"}
    infos = [s.MetricInfo("auc", attack=words), s.MetricInfo("distance", 2, "fraction", "lower")]
    assert s.metrics_of(s.trial_schema(infos)) == infos
    assert s.metrics_of(s.unify([s.trial_schema(infos[1:]), s.trial_schema(infos)], "trials")) == infos[::-1]
