"""What the registry knows of the methods of a results folder, for the page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from raybench.catalogue import records
from raybench.deviations import deviations
from raybench.errors import UserError
from raybench.leaderboard.page import Card
from raybench.registry import METHODS, load_plugins

_ARXIV, _DOI = re.compile(r"arXiv:(\d{4}\.\d{4,5})"), re.compile(r"doi:(10\.\S+)")


def cards(methods: Iterable[str], spec: str) -> list[Card]:
    """One card per name, in order. ``spec``: the text of spec.yaml, whose ``plugins`` are imported where they can be:
    a page can be made where they are not installed, and says so."""
    plugins = _plugins(spec)
    try:
        load_plugins(plugins)
        missing = ""
    except UserError as error:
        missing = str(error)
    known = {record["name"]: record for record in records("methods")}
    stated = {item.name: item for item in deviations()}
    found = []
    for name in sorted(set(methods)):
        if name in known:
            found.append(_card(known[name], stated[name].deviations if stated[name].stated else None))
        else:
            why = missing or "it is not registered"
            found.append(Card(name, name, missing=f"No method of this name is installed here: {why}."))
    return found


def _plugins(spec: str) -> tuple[str, ...]:
    plain = yaml.safe_load(spec) if spec else None
    given = plain.get("plugins") or () if isinstance(plain, Mapping) else ()
    return tuple(str(name) for name in given)


def _card(record: Mapping[str, Any], said: Sequence[str] | None) -> Card:
    entry = METHODS[record["name"]]
    return Card(
        name=entry.name,
        label=entry.label,
        summary=entry.summary,
        paper="" if entry.paper in ("", "none") else entry.paper,
        link=link(entry.paper),
        needs=tuple(record["needs"]),
        scope=tuple(record["scope"]),
        complexity=entry.complexity,
        training=entry.training or "",
        hparams=tuple(record["hparams"]),
        deviations=None if said is None else tuple(said),
    )


def link(paper: str) -> str:
    """Where a paper can be read, for an arXiv number or a DOI; empty otherwise."""
    if found := _ARXIV.search(paper):
        return f"https://arxiv.org/abs/{found[1]}"
    if found := _DOI.search(paper):
        return f"https://doi.org/{found[1]}"
    return ""
