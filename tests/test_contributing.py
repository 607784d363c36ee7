"""The issue forms are forms, and what CONTRIBUTING.md asks for is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from raybench.arguments import make_parser

ROOT = Path(__file__).parent.parent
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
TYPES = {"input", "textarea", "checkboxes", "dropdown", "markdown"}


def test_forms_for_methods_and_leaderboards_are_there() -> None:
    assert {"method", "leaderboard", "bug"} <= {path.stem for path in FORMS}


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_form(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    assert form["name"]
    assert form["description"]
    ids = [item["id"] for item in form["body"] if item["type"] != "markdown"]
    assert len(set(ids)) == len(ids)
    for item in form["body"]:
        assert item["type"] in TYPES
        assert item["attributes"]["label"]
        if item["type"] == "checkboxes":
            assert all(option["label"] for option in item["attributes"]["options"])
    commands = re.findall(r"raybench ([a-z-]+)", path.read_text())
    known = next(action for action in make_parser()._actions if isinstance(action.choices, dict)).choices
    assert commands
    assert set(commands) <= {*known, "should"}


def test_contributing_names_the_forms_and_the_checks_of_ci() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for path in FORMS:
        title = yaml.safe_load(path.read_text())["name"]
        assert title in text or path.stem == "bug"
    for command in ("ruff check .", "ruff format --check .", "mypy", "lint-imports", "python -m pytest"):
        assert command in text
        assert command in (ROOT / ".ci" / "run").read_text()
