"""Published numbers: data files in ``raybench/published``, one per source document, read into cells.

A file has a title, the paper, and tables. A table is a matrix: ``columns`` x ``rows``, whose ``values`` stand in the
order of the columns (null: nothing printed there; ``[value, sd]`` where a standard deviation is printed). Every other
field of a cell (see ``Cell``) may stand at the table, the column or the row; the row wins over the column. ``scales``
say which problem of ``specs/reproduce_<name>_<scale>.yaml`` stands for which published one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

FACTORS = {"percent": 0.01, "fraction": 1.0, "s": 1.0, "ratio": 1.0, "nats": 1.0}  # published unit -> raybench's
PARTS = ("value", "gap")
PEAK = "peak"
_OF_TABLES = ("columns", "rows", "title")


@dataclass(frozen=True)
class Cell:
    """One published number, in raybench's units (fractions, seconds)."""

    table: str
    row: str
    """The method as the source calls it."""
    method: str | None
    """Registry key; None: not in raybench, and no key is reserved for it."""
    dataset: str
    model: str
    scenario: str
    metric: str | None
    """Column of the leaderboard; None where ``reason`` says why no column is the same thing."""
    published: float | None
    """None only for a claim without a number."""
    sd: float | None
    tolerance: float
    """sd + what reading a figure may be off + half a unit of the last printed digit."""
    unit: str
    source: str
    evidence: str
    """In words: stated, read off a figure, from official notebook, ..."""
    variant: str = ""
    """Variant of our line."""
    part: str = "value"
    """value, or gap: the source gives the difference to the retrained model."""
    at: int | str | None = None
    """Not the result but a point of the curve: its step, or ``peak``, the highest."""
    label: str = ""
    """What the source calls the metric, where ``metric`` does not say it."""
    reason: str = ""
    """Why it can be compared with nothing here."""
    note: str = ""
    """What to know beside the verdict."""

    @property
    def problem(self) -> tuple[str, str, str]:
        return self.dataset, self.model, self.scenario

    @property
    def what(self) -> str:
        """The metric as people read it."""
        text = self.label or self.metric or ""
        text += ", minus retrained" if self.part == "gap" else ""
        return text + (f", {PEAK}" if self.at == PEAK else f" at step {self.at}" if self.at is not None else "")


@dataclass(frozen=True)
class StandIn:
    """Which problem of a spec stands for a published one: (dataset, model, scenario) as the leaderboard has them."""

    published: tuple[str, str, str]
    ours: tuple[str, str, str] | None
    """None: left out of this scale, for the reason."""
    reason: str = ""
    """Why numbers of the two cannot be compared; empty where they can."""


@dataclass(frozen=True)
class Published:
    """One source document's numbers."""

    name: str
    title: str
    paper: str
    tables: Mapping[str, str]
    cells: tuple[Cell, ...]
    scales: Mapping[str, tuple[StandIn, ...]]


def published_names() -> list[str]:
    """Documents with a file of published numbers."""
    folder = resources.files("raybench") / "published"
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


def read_published(name: str) -> Published:
    """The numbers of one document. A file that breaks the form raises ``ValueError``: it ships with the package."""
    text = (resources.files("raybench") / "published" / f"{name}.yaml").read_text(encoding="utf-8")
    return parse_published(name, yaml.safe_load(text))


def parse_published(name: str, raw: Mapping[str, Any]) -> Published:
    """As ``read_published``, from plain values."""
    tables = {table["id"]: table["title"] for table in raw["tables"]}
    if len(tables) < len(raw["tables"]):
        raise ValueError(f"tables of {name} must differ in id")
    cells = tuple(cell for table in raw["tables"] for cell in _cells(table))
    scales = {scale: tuple(_stand_in(item) for item in items) for scale, items in raw["scales"].items()}
    known = {cell.problem for cell in cells}
    strange = [item.published for items in scales.values() for item in items if item.published not in known]
    if strange:
        raise ValueError(f"scales of {name} name {strange[0]}, which no table has")
    return Published(name, raw["title"], raw["paper"], tables, cells, scales)


def _stand_in(item: Mapping[str, Any]) -> StandIn:
    ours: Any = None if item["ours"] is None else tuple(item["ours"])
    published: Any = tuple(item["published"])
    found = StandIn(published, ours, **{k: v for k, v in item.items() if k not in ("published", "ours")})
    if ours is None and not found.reason:
        raise ValueError(f"{published} is left out without a reason")
    return found


def _cells(table: Mapping[str, Any]) -> Iterator[Cell]:
    shared = {key: value for key, value in table.items() if key not in _OF_TABLES}
    for row in table["rows"]:
        values = row.get("values", [])
        if len(values) != len(table["columns"]):
            raise ValueError(
                f"{table['id']}, row {row.get('row')}: {len(values)} values, {len(table['columns'])} columns"
            )
        for index, (column, value) in enumerate(zip(table["columns"], values, strict=True)):
            fields = {**shared, **column, **{k: v for k, v in row.items() if k != "values"}}
            if value is None and not fields.get("claim"):
                continue
            try:
                yield _cell(fields, value, index)
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{table['id']}, row {row.get('row')}, column {index}: {error!r}") from error


def _cell(fields: dict[str, Any], value: Any, index: int) -> Cell:
    claim = bool(fields.pop("claim", False))
    factor = FACTORS[fields["unit"]]
    number, sd = value if isinstance(value, list) else (value, None)
    read_off = fields.pop("read_off", 0.0)
    read_off = read_off[index] if isinstance(read_off, list) else read_off
    width = float(sd or 0.0) + float(read_off) + float(fields.pop("rounding", 0.0))
    cell = Cell(
        table=fields.pop("id"),
        published=None if number is None else float(number) * factor,
        sd=None if sd is None else float(sd) * factor,
        tolerance=width * factor,
        **fields,
    )
    if (number is None) != claim:
        raise ValueError("a claim has no number, and everything else has one")
    if cell.metric is None and not cell.reason:
        raise ValueError("a cell without a metric must say why in reason")
    if cell.part not in PARTS or not (cell.at is None or cell.at == PEAK or isinstance(cell.at, int)):
        raise ValueError(f"part must be one of {PARTS} and at a step or {PEAK}")
    texts = [f.name for f in dataclasses.fields(Cell) if f.name not in ("published", "sd", "tolerance", "at")]
    strange = [
        n
        for n in texts
        if not isinstance(getattr(cell, n), str) and not (n in ("method", "metric") and getattr(cell, n) is None)
    ]
    if strange:
        raise ValueError(f"{', '.join(strange)} must be text")
    return cell
