"""``raybench list``: what can be named in a spec, from the registered metadata."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from rich.console import Console
from rich.table import Table

from raybench.measured import measured_shares
from raybench.options import option_names
from raybench.registry import KINDS, TRAININGS, DatasetEntry, Entry, MethodEntry, MetricEntry, ModelEntry
from raybench.seeding import canonical
from raybench.space import field_docs, searched
from raybench.spec_file import read_spec, shipped_specs
from raybench.weights import OPTION as WEIGHTS


def records(kind: str) -> list[dict[str, Any]]:
    """One object per registered name: ``name`` and the metadata."""
    if kind == "specs":
        return [{"name": n, "description": read_spec(n).get("description", "").strip()} for n in shipped_specs()]
    return [_record(entry) for entry in KINDS[kind]]


def _record(entry: Entry) -> dict[str, Any]:
    record: dict[str, Any] = {
        "name": entry.name,
        "label": entry.label,
        "version": entry.version,
        "paper": entry.paper,
        "summary": entry.summary,
    }
    if isinstance(entry, MethodEntry):
        record |= {
            "needs": sorted(entry.needs),
            "scope": sorted(entry.scope),
            "tasks": sorted(entry.tasks),
            "reference": entry.reference,
            "training": entry.training,
            "complexity": entry.complexity,
            "measured": measured_shares().get(entry.name),
            "batch_norm": entry.batch_norm,
            "hparams": _fields(entry.hparams),
        }
        if entry.training:
            record["training_hparams"] = _fields(TRAININGS[entry.training].hparams)
    elif isinstance(entry, MetricEntry):
        record |= {
            "unit": entry.unit,
            "range": list(entry.range),
            "direction": entry.direction,
            "pair": entry.pair,
            "final_only": entry.final_only,
            "fits": entry.fits,
            "tasks": sorted(entry.tasks),
            "attack": dataclasses.asdict(entry.attack) if entry.attack else None,
        }
    elif isinstance(entry, ModelEntry | DatasetEntry):
        record["options"] = list(option_names(entry.fn))
        if isinstance(entry, DatasetEntry):
            record["recipe"] = dict(entry.recipe)
        else:
            record |= {"options": [*record["options"], WEIGHTS], "task": entry.task}
    else:
        record |= {"kind": getattr(entry, "kind", None), "params": _fields(getattr(entry, "params", object))}
    return record


def _fields(cls: type) -> list[dict[str, Any]]:
    docs, marks = field_docs(cls), searched(cls)
    found = []
    for field in dataclasses.fields(cls):
        default = None if field.default is dataclasses.MISSING else canonical(field.default)
        item: dict[str, Any] = {"name": field.name, "default": default, "doc": docs.get(field.name, "")}
        if field.name in marks:
            item |= {"searched": describe_range(marks[field.name].distribution), "role": marks[field.name].role}
        found.append(item)
    return found


def describe_range(distribution: Any) -> str:
    """A distribution in a few characters: ``0.5..50 log``, ``{1, 2, 5}``."""
    if isinstance(distribution, CategoricalDistribution):
        return "{" + ", ".join(map(str, distribution.choices)) + "}"
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    text = f"{distribution.low:g}..{distribution.high:g}"
    return text + (" log" if distribution.log else "")


def catalogue(kind: str, form: str) -> str:
    """The listing as a table for people or as JSON (a list of objects)."""
    found = records(kind)
    if form == "json":
        return json.dumps(found, indent=1)
    if form == "markdown":
        return _markdown(found, _columns(kind, wide=True))
    table = Table(box=None, pad_edge=False)
    columns = _columns(kind)
    for column in columns:
        table.add_column(column, overflow="fold")
    for record in found:
        table.add_row(*(_cell(record, column) for column in columns))
    console = Console(width=None if Console().is_terminal else 160, highlight=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get().rstrip()


def _markdown(found: list[dict[str, Any]], columns: tuple[str, ...]) -> str:
    lines = [columns, ["---"] * len(columns)]
    lines += [[_cell(record, column).replace("|", "\\|") for column in columns] for record in found]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _columns(kind: str, wide: bool = False) -> tuple[str, ...]:
    more = ("batch_norm", "training", "searched", "paper", "summary") if wide else ("training", "searched", "summary")
    return {
        "methods": ("name", "needs", "scope", "complexity", "measured", *more),
        "metrics": ("name", "unit", "direction", "summary"),
        "models": ("name", "options", "summary"),
        "datasets": ("name", "options", "summary"),
        "scenarios": ("name", "kind", "params", "summary"),
        "specs": ("name", "description"),
    }[kind]


def _cell(record: dict[str, Any], column: str) -> str:
    if column == "training":
        return "own training" if record["training"] else "-"
    if column == "searched":
        return ", ".join(f["name"] for f in record["hparams"] if "searched" in f) or "-"
    value = record.get(column)
    if column == "measured":
        return "-" if value is None else f"{100 * value:.3g} %"
    if column == "params":
        return ", ".join(f["name"] for f in value or ())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return str(value or "-")
