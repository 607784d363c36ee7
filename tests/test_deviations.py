"""The page of deviations: parsed from the docstrings, complete, and the committed page is today's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from raybench.deviations import COMMAND, Deviations, parse, render

ROOT = Path(__file__).parent.parent


def generated(form: str) -> str:
    """In a process of its own: tests register methods of theirs."""
    command = [sys.executable, "-m", "raybench", "list", "deviations", "--format", form]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120).stdout


def test_items_and_their_continuation_lines() -> None:
    doc = "First line.\n\nDeviations:\n    - one, which goes\n      on here.\n    - two - with a dash\n\nCost: none."
    assert parse(doc) == ["one, which goes on here.", "two - with a dash"]


def test_nested_dashes_belong_to_their_item() -> None:
    assert parse("Deviations:\n    - one:\n      - inner\n    - two") == ["one: - inner", "two"]


def test_none_and_no_section_are_not_the_same() -> None:
    assert parse("A line.\n\nDeviations: none.") == []
    assert parse("A line that mentions Deviations: somewhere.") is None


@pytest.mark.parametrize(
    "doc",
    ["Deviations: some prose.", "Deviations:\nno list", "Deviations:", "Deviations: none.\nDeviations: none."],
)
def test_a_section_that_would_get_lost_is_an_error(doc: str) -> None:
    with pytest.raises(ValueError, match="Deviations:"):
        parse(doc)


def test_page_says_where_a_method_does_not() -> None:
    found = [
        Deviations("a", "A", "arXiv:1", True, ("x",)),
        Deviations("b", "b", "", False, ()),
        Deviations("c", "c", "", True, ()),
    ]
    page = render("markdown", found)
    assert "## a (A)\n\nSource: arXiv:1\n\n- x" in page
    assert "## b\n\n- its docstring does not say" in page
    assert "## c\n\n- none" in page
    assert [record["name"] for record in json.loads(render("json", found))] == ["a", "b", "c"]
    assert "  - x" in render("table", found)


def test_every_method_has_the_section() -> None:
    missing = [record["name"] for record in json.loads(generated("json")) if not record["stated"]]
    assert not missing, "these docstrings need a section 'Deviations:' (a list, or 'none.')"


def test_committed_page_is_todays() -> None:
    assert (ROOT / "results" / "deviations.md").read_text() == generated("markdown"), f"make it anew: {COMMAND}"
