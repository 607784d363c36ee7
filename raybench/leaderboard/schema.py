"""Columns of a trial row: one table of records, from which every Parquet part gets its schema.

Accuracies, errors and rates are fractions; times are seconds; JSON columns hold canonical JSON text.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from raybench.errors import UserError

SCHEMA_VERSION = 1
PHASES = ("search", "final", "reference", "oracle")
STATUSES = ("ok", "skipped", "timeout", "diverged", "failed")  # from best to worst
LINE = ("dataset", "model", "scenario", "method", "variant")  # what makes a leaderboard line

TEXT, INT, REAL, BOOL = pa.string(), pa.int64(), pa.float64(), pa.bool_()
TIME = pa.timestamp("us", tz="UTC")
_PLAIN: dict[pa.DataType, type] = {
    TEXT: str,
    INT: int,
    REAL: float,
    BOOL: bool,
}  # values of exactly this type fit and need no trial
_VERSION_KEY, _KIND_KEY = b"raybench.schema_version", b"raybench.kind"
_PROTOCOL_KEY, _METRICS_KEY, _UNITS_KEY = b"raybench.protocol", b"raybench.metrics", b"raybench.units"


@dataclass(frozen=True)
class MetricInfo:
    """What the leaderboard must know of a metric; a copy, so that this package imports no plug-in."""

    name: str
    version: int = 1
    unit: str = "fraction"
    direction: str = "match_retrained"  # higher | lower | match_retrained
    # Of an attack's number: attack, score, fit_on, apply_to, reported_quantity (raybench.registry.Attack).
    attack: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Column:
    """One column. ``required``: never null. ``same``: two runs of one spec must agree on it."""

    name: str
    type: pa.DataType
    unit: str
    meaning: str
    group: str  # identity | status | cost | provenance
    required: bool = False
    same: bool = True


def _identity(name: str, type_: pa.DataType, meaning: str, unit: str = "", required: bool = True) -> Column:
    return Column(name, type_, unit, meaning, "identity", required)


def _status(name: str, type_: pa.DataType, meaning: str, unit: str = "", required: bool = False) -> Column:
    return Column(name, type_, unit, meaning, "status", required)


def _cost(name: str, type_: pa.DataType, unit: str, meaning: str, same: bool = False) -> Column:
    return Column(name, type_, unit, meaning, "cost", same=same)


def _provenance(name: str, type_: pa.DataType, meaning: str, unit: str = "") -> Column:
    return Column(name, type_, unit, meaning, "provenance", same=False)


CORE: tuple[Column, ...] = (
    _identity("trial_id", TEXT, "hash of everything that decides the result"),
    Column("attempt", INT, "count", "0 for the first try, one more at every retry", "identity", True, same=False),
    _identity("experiment", TEXT, "name of the experiment"),
    _identity("protocol", TEXT, "protocol version; rows of different versions are not comparable"),
    _identity("dataset", TEXT, "dataset as people read it"),
    _identity("dataset_checksum", TEXT, "checksum of images and labels", required=False),
    _identity("model", TEXT, "model as people read it, such as lenet5"),
    _identity("scenario", TEXT, "scenario as people read it, such as class(0)"),
    _identity("forget_size", INT, "size of the forget set", "samples", required=False),
    _identity("method", TEXT, "registry key of the method"),
    _identity("method_version", INT, "version of the method's code"),
    _identity("variant", TEXT, "empty, or the difference between several lines of one method"),
    _identity("original_kind", TEXT, "how the original model was trained", required=False),
    _identity("phase", TEXT, "search, final, reference, or oracle (a model that only serves attacks)"),
    _identity("train_seed", INT, "seed of the split and of the original's training"),
    _identity("unlearn_seed", INT, "seed of the method; the gold index for method retrain"),
    _identity("evaluate_seed", INT, "seed of evaluation (attacks draw samples)", required=False),
    _identity("hparams", TEXT, "resolved hyperparameters, JSON"),
    _identity("spec", TEXT, "the full trial spec, JSON"),
    _identity("selected_on", TEXT, "what the search's objective used: retrained or validation", required=False),
    _identity("selected_by", TEXT, "rule that selected the setting: distance, knee, ...", required=False),
    _identity("tuned_here", BOOL, "the train seed is one that the search used", required=False),
    _status("status", TEXT, "ok, diverged, timeout, failed or skipped", required=True),
    _status("reason", TEXT, "why the status is not ok"),
    _status("stop_reason", TEXT, "why the method stopped: target, max_steps, ..."),
    _status("gates", TEXT, "sanity gates, JSON: name -> true, false or null (could not be judged)"),
    _cost("unlearn_s", REAL, "s", "charged wall seconds of the method, shared_s included"),
    _cost("cpu_s", REAL, "s", "process seconds of the method"),
    _cost("shared_s", REAL, "s", "the part of unlearn_s that came from task.once"),
    _cost("retrain_s", REAL, "s", "wall seconds of retraining, same device type"),
    _cost("speedup", REAL, "ratio", "retrain_s / unlearn_s"),
    _cost("original_train_s", REAL, "s", "wall seconds of training the original model"),
    _cost("artefact_bytes", INT, "bytes", "size of what the own training saved for the method", same=True),
    _cost("tuning_s", REAL, "s", "charged seconds of the search behind this setting"),
    _cost("metrics_s", REAL, "s", "wall seconds of the metrics that probe the models; null without any"),
    _cost("forward_passes", REAL, "samples", "forward sample passes", same=True),
    _cost("backward_passes", REAL, "samples", "backward sample passes", same=True),
    _cost("retrain_share", REAL, "ratio", "sample passes as a share of a retraining's", same=True),
    _cost("peak_memory", INT, "bytes", "peak device memory; null on CPU"),
    _cost("footprint", INT, "bytes", "most device memory of the trial's process, CUDA's own included; null on CPU"),
    _cost("exclusive", BOOL, "", "nothing else ran on the device"),
    _cost("threads", INT, "count", "CPU threads of the trial", same=True),
    _provenance("raybench_version", TEXT, "version of raybench"),
    _provenance("torch_version", TEXT, "version of torch"),
    _provenance("ray_version", TEXT, "version of ray; null in a serial run"),
    _provenance("cuda_version", TEXT, "version of CUDA; null on CPU"),
    _provenance("device_type", TEXT, "cpu, cuda, ..."),
    _provenance("device_name", TEXT, "the device's product name"),
    _provenance("device_ids", TEXT, "device indices on the node"),
    _provenance("node", TEXT, "host name"),
    _provenance("pid", INT, "process id"),
    _provenance("git_commit", TEXT, "commit of the checkout, with + when it had changes"),
    _provenance("started_at", TIME, "start of the trial", "UTC"),
    _provenance("wall_s", REAL, "wall seconds of the whole trial, evaluation included", "s"),
    _provenance("cached", BOOL, "the row comes from a stored reference model"),
    Column("reported", TEXT, "", "what the method itself states, JSON", "status"),
)
CORE_NAMES = tuple(column.name for column in CORE)
JSON_COLUMNS = ("hparams", "spec", "gates", "reported", "missing", "line")
# Core columns that two runs of one spec must share (metric columns and ``missing`` too, see ``comparable``).
# Peak memory and ``exclusive`` describe the run's circumstances like the seconds do, so they are left out.
COMPARABLE: tuple[str, ...] = tuple(column.name for column in CORE if column.same)


def comparable(schema: pa.Schema) -> list[str]:
    """All columns of ``schema`` that two runs of one spec must share, metric columns included."""
    differing = {column.name for column in CORE if not column.same}
    return [name for name in schema.names if name not in differing]


def describe(kind: str, metrics: Sequence[MetricInfo] = (), protocol: str = "") -> dict[bytes, bytes]:
    """File metadata: schema version, kind of table, protocol version(s), metrics, units of the core columns."""
    info: dict[str, dict[str, Any]] = {}
    for m in metrics:
        info[m.name] = {"version": m.version, "unit": m.unit, "direction": m.direction}
        if m.attack is not None:
            info[m.name]["attack"] = dict(m.attack)
    units = {column.name: column.unit for column in CORE if column.unit}
    return {
        _VERSION_KEY: str(SCHEMA_VERSION).encode(),
        _KIND_KEY: kind.encode(),
        _PROTOCOL_KEY: protocol.encode(),
        _METRICS_KEY: json.dumps(info).encode(),
        _UNITS_KEY: json.dumps(units).encode(),
    }


def metric_columns(name: str) -> tuple[str, str, str]:
    """``<m>``, ``<m>_retrained``, ``<m>_gap`` (signed: unlearned minus retrained)."""
    return name, f"{name}_retrained", f"{name}_gap"


def trial_schema(metrics: Sequence[MetricInfo], protocol: str = "") -> pa.Schema:
    """Core columns, three columns per metric, and ``missing`` (JSON: metric -> reason).

    A metric name that collides with another column raises ``ValueError``.
    """
    fields = [pa.field(column.name, column.type, nullable=not column.required) for column in CORE]
    for metric in metrics:
        fields += [pa.field(name, REAL) for name in metric_columns(metric.name)]
    fields.append(pa.field("missing", TEXT))
    names = [field.name for field in fields]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"column names must differ, a metric repeats {', '.join(twice)}")
    return pa.schema(fields, metadata=describe("trials", metrics, protocol))


SEARCHES_SCHEMA = pa.schema(
    [
        pa.field("search_id", TEXT, nullable=False),
        # JSON object with dataset, model, scenario, method as in the rows; ``variant`` only when the search
        # serves one variant alone (without it, every variant of the method is charged for the search).
        pa.field("line", TEXT, nullable=False),
        pa.field("round", INT, nullable=False),
        pa.field("index", INT, nullable=False),
        pa.field("train_seed", INT, nullable=False),
        pa.field("trial_id", TEXT, nullable=False),
        pa.field("hparams", TEXT, nullable=False),
    ],
    metadata=describe("searches"),
)
# Metrics of rows measured after them: from the oracle pool, or added to a finished experiment.
METRICS_SCHEMA = pa.schema(
    [
        pa.field("trial_id", TEXT, nullable=False),
        pa.field("attempt", INT, nullable=False),
        pa.field("metric", TEXT, nullable=False),
        pa.field("version", INT, nullable=False),
        pa.field("evaluate_seed", INT, nullable=False),
        pa.field("pool", TEXT, nullable=False),  # sizes of the oracle pool; empty for metrics that do not use it
        pa.field("value", REAL),
        pa.field("retrained", REAL),
        pa.field("gap", REAL),
        pa.field("reason", TEXT),  # why there is no value, or no retrained value
        pa.field("seconds", REAL),
        pa.field("measured_at", TIME),
        pa.field("raybench_version", TEXT),
    ],
    metadata=describe("metrics"),
)
SERIES_SCHEMA = pa.schema(
    [
        pa.field("trial_id", TEXT, nullable=False),
        pa.field("name", TEXT, nullable=False),
        pa.field("step", INT, nullable=False),
        pa.field("x", REAL),
        pa.field("y", REAL),
    ],
    metadata=describe("series"),
)


def metrics_of(schema: pa.Schema) -> list[MetricInfo]:
    """The metrics that a file's metadata describes, in the file's order."""
    text = (schema.metadata or {}).get(_METRICS_KEY, b"{}")
    return [MetricInfo(name, **info) for name, info in json.loads(text).items()]


def protocols_of(schema: pa.Schema) -> set[str]:
    """The protocol versions that a file's metadata names."""
    return set(filter(None, (schema.metadata or {}).get(_PROTOCOL_KEY, b"").decode().split(",")))


def check_version(schema: pa.Schema, kind: str, path: str) -> None:
    """``UserError`` for a file that raybench did not write as ``kind``, or a newer raybench wrote."""
    metadata = schema.metadata or {}
    version, found = metadata.get(_VERSION_KEY), metadata.get(_KIND_KEY, b"").decode()
    if version is None or found != kind:
        raise UserError(f"{path} must be a raybench {kind} file, it is not ({found or 'no metadata'}); move it away")
    if int(version) > SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema version {int(version)}, this raybench reads up to {SCHEMA_VERSION}; "
            "upgrade raybench to read these results"
        )


def unify(schemas: Iterable[pa.Schema], kind: str) -> pa.Schema:
    """One schema for all parts: columns by name, metrics and protocol versions of all of them."""
    listed = list(schemas)
    metrics: dict[str, MetricInfo] = {}
    protocols: set[str] = set()
    for schema in listed:
        for metric in metrics_of(schema):
            old = metrics.get(metric.name)
            if old is None or old.version < metric.version:
                metrics[metric.name] = metric
        protocols |= protocols_of(schema)
    merged = pa.unify_schemas([schema.remove_metadata() for schema in listed], promote_options="permissive")
    return merged.with_metadata(describe(kind, list(metrics.values()), ",".join(sorted(protocols))))


def check_row(row: Mapping[str, Any], schema: pa.Schema) -> dict[str, Any]:
    """``row`` ready to be written: every column present, NaN as null. ``ValueError`` names what is wrong.

    pyarrow drops unknown keys silently and fills absent ones, hence this check before every write.
    """
    return RowCheck(schema)(row)


class RowCheck:
    """``check_row`` of one schema, for many rows: what it asks the schema for is asked once."""

    def __init__(self, schema: pa.Schema) -> None:
        self._types = {field.name: field.type for field in schema}
        self._plain = {name: _PLAIN.get(type_) for name, type_ in self._types.items()}
        self._required = [field.name for field in schema if not field.nullable]

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        strange = [key for key in row if key not in self._types]
        if strange:
            close = difflib.get_close_matches(strange[0], self._types, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"a row has columns that the schema lacks: {', '.join(map(repr, strange))}{hint}")
        absent = [name for name in self._required if row.get(name) is None]
        if absent:
            raise ValueError(f"a row must have {', '.join(absent)}")
        clean: dict[str, Any] = dict.fromkeys(self._types)
        for name, value in row.items():
            if value is None or value != value:  # NaN
                continue
            clean[name] = value
            plain = self._plain[name]
            if type(value) is not plain or (isinstance(value, int) and not -(2**63) <= value < 2**63):
                _check_value(name, self._types[name], value)
            elif name in JSON_COLUMNS:
                _check_json(name, value)
        _check_words(clean)
        return clean


def _check_value(name: str, type_: pa.DataType, value: Any) -> None:
    try:
        kept = pa.array([value], type=type_)[0].as_py()
        if pa.types.is_integer(type_) and kept != value:
            raise pa.ArrowInvalid("pyarrow would cut the fraction off")
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise ValueError(f"column {name!r} must be {type_}, got {value!r} ({error})") from error
    if name in JSON_COLUMNS:
        _check_json(name, value)


def _check_json(name: str, value: Any) -> None:
    try:
        json.loads(value)
    except ValueError as error:
        raise ValueError(f"column {name!r} must be JSON, got {value!r}") from error


def _check_words(row: Mapping[str, Any]) -> None:
    if "phase" in row and row["phase"] not in PHASES:
        raise ValueError(f"phase must be one of {', '.join(PHASES)}, got {row['phase']!r}")
    if "status" in row:
        if row["status"] not in STATUSES:
            raise ValueError(f"status must be one of {', '.join(STATUSES)}, got {row['status']!r}")
        if row["status"] != "ok" and not row["reason"]:
            raise ValueError(f"a row with status {row['status']} must have a reason")
    if "line" in row:
        line = json.loads(row["line"])
        absent = [key for key in LINE[:4] if not isinstance(line, dict) or key not in line]
        if absent:
            raise ValueError(f"the line of a search must name {', '.join(absent)}, got {row['line']}")
