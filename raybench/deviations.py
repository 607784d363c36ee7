"""The page of deviations: what every method does otherwise than its paper or official code, from its docstring."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from raybench.registry import METHODS, MethodEntry

HEADING = "Deviations:"
_ITEM = re.compile(r"^(\s*)- ")
COMMAND = "raybench list deviations --format markdown > results/deviations.md"


@dataclass(frozen=True)
class Deviations:
    """Of one method. ``stated`` is false where its docstring has no such section."""

    name: str
    label: str
    paper: str
    stated: bool
    deviations: tuple[str, ...]


def deviations() -> list[Deviations]:
    """One record per registered method, by name."""
    return [_of(entry) for entry in METHODS]


def _of(entry: MethodEntry) -> Deviations:
    found = parse(inspect.getdoc(entry.fn) or "")
    return Deviations(entry.name, entry.label, entry.paper, found is not None, tuple(found or ()))


def parse(doc: str) -> list[str] | None:
    """The items of the section of a cleaned docstring; empty for "Deviations: none.", None without a section.

    A section that is neither raises ``ValueError``: its text would be missing from the page.
    """
    lines = doc.splitlines()
    at = [index for index, line in enumerate(lines) if line.lstrip().startswith(HEADING)]
    if not at:
        return None
    rest = lines[at[0]].strip().removeprefix(HEADING).strip()
    if len(at) > 1 or rest not in ("", "none."):
        raise ValueError(f"a docstring has one section {HEADING} with a list or 'none.', got {lines[at[0]].strip()!r}")
    if rest == "none.":
        return []
    items: list[str] = []
    indent: str | None = None
    for line in lines[at[0] + 1 :]:
        item = _ITEM.match(line)
        if item and (indent is None or item[1] == indent):
            indent = item[1]
            items.append(line.strip().removeprefix("- "))
        elif indent is not None and line.startswith(indent + "  "):
            items[-1] += " " + line.strip()
        elif items or line.strip():
            break
    if not items:
        raise ValueError(f"the section {HEADING} must be a list of items that start with '- ', or 'none.'")
    return items


def render(form: str, found: Iterable[Deviations] | None = None) -> str:
    """As table (for a terminal), markdown (the committed page) or json (a list of objects)."""
    records = list(found if found is not None else deviations())
    if form == "json":
        return json.dumps([asdict(record) for record in records], indent=1)
    if form == "markdown":
        return "\n".join(_page(records))
    return "\n".join(line for record in records for line in (record.name, *(f"  - {t}" for t in _texts(record)), ""))


def _texts(record: Deviations) -> tuple[str, ...]:
    if not record.stated:
        return ("its docstring does not say",)
    return record.deviations or ("none",)


def _page(records: list[Deviations]) -> Iterable[str]:
    yield "# Deviations"
    yield ""
    yield "What each method does otherwise than its paper or its official code, and why. Generated from the docstrings:"
    yield f"`{COMMAND}`."
    for record in records:
        yield ""
        title = f" ({record.label})" if record.label != record.name else ""
        yield f"## {record.name}{title}"
        yield ""
        if record.paper:
            yield f"Source: {record.paper}"
            yield ""
        yield from (f"- {text}" for text in _texts(record))
