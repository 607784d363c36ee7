"""Ranks over problems: by hand, with what failed, what does not apply, and too few problems."""

from __future__ import annotations

import io
import json
from typing import Any

import pandas as pd
import pytest
from scipy import stats

from raybench.errors import UserError
from raybench.leaderboard.overall import overall, records, render_overall, sentence

METHODS = {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4}


def line(problem: int, method: str, distance: float, **changes: Any) -> dict[str, Any]:
    found = {"dataset": "digits", "model": "mlp", "scenario": f"class({problem})", "method": method, "variant": ""}
    found |= {"distance": distance, "rank_group": 1.0, "status": "ok", "gates": "{}", "kind": "method"}
    return found | changes


def board(problems: int = 12, **changes: Any) -> list[dict[str, Any]]:
    """Always a < b < c < d, and the reference lines beside them."""
    lines = [line(p, m, d + p / 100, **changes) for p in range(problems) for m, d in METHODS.items()]
    unranked = {"rank_group": None, "kind": "reference"}
    return lines + [line(p, m, 0.0, **unranked) for p in range(problems) for m in ("original", "retrain")]


def test_by_hand() -> None:
    """Mean ranks 1 to 4 over twelve problems; the critical difference is 1.354, so neighbours share a letter."""
    found = overall(pd.DataFrame(board()))
    assert found.ranks is not None
    assert [(r["method"], r["mean_rank"], r["groups"]) for r in records(found)] == [
        ("a", 1.0, "a"), ("b", 2.0, "ab"), ("c", 3.0, "bc"), ("d", 4.0, "c"),
    ]  # fmt: skip
    values = [[d + p / 100 for p in range(12)] for d in METHODS.values()]
    assert found.ranks.p == pytest.approx(stats.friedmanchisquare(*values).pvalue)
    assert "Friedman chi-squared 36, p = " in sentence(found)
    assert "critical difference 1.35" in sentence(found)


def test_what_failed_or_broke_a_gate_shares_the_last_rank() -> None:
    lines = board()
    for row in lines:
        if row["scenario"] in ("class(0)", "class(1)", "class(2)") and row["method"] == "a":
            broken = {"status": "diverged"} if row["scenario"] == "class(0)" else {"gates": '{"retain":false}'}
            row |= {"rank_group": None, "distance": 0.0, **broken}
        if row["scenario"] == "class(2)" and row["method"] == "b":
            row |= {"rank_group": None, "status": "failed", "distance": None}
    found = overall(pd.DataFrame(lines))
    ranks = {r["method"]: r["mean_rank"] for r in records(found)}
    # a: nine times 1, twice 4, once 3.5 with b; b: nine times 2, twice 1, once 3.5.
    assert ranks == pytest.approx({"a": 20.5 / 12, "b": 23.5 / 12, "c": (9 * 3 + 2 * 2 + 1) / 12, "d": 44 / 12})
    assert {r["method"]: r["last"] for r in records(found)} == {"a": 3, "b": 1, "c": 0, "d": 0}
    assert "last: problems on which a method failed" in render_overall(found)


def test_methods_that_do_not_apply_everywhere_are_left_out_by_name() -> None:
    lines = board()
    lines = [row for row in lines if not (row["method"] == "d" and row["scenario"] in ("class(3)", "class(4)"))]
    for row in lines:
        if row["method"] == "c" and int(row["scenario"][6:-1]) >= 7:
            row |= {"status": "skipped", "rank_group": None}
    found = overall(pd.DataFrame(lines))
    # Without c there are ten problems left for a, b and d.
    assert [r["method"] for r in records(found)] == ["a", "b", "d"]
    assert found.usable == 10
    assert found.dropped == {"c\n": 7}
    assert "not compared, too few problems with a result: c (7)" in render_overall(found)


def test_problems_without_a_rank_do_not_count() -> None:
    lines = board()
    for row in lines:
        if row["scenario"] in ("class(0)", "class(1)", "class(2)"):  # unresolved, say, or two seeds
            row |= {"rank_group": None}
    found = overall(pd.DataFrame(lines))
    assert (found.ranks, found.usable, found.missing) == (None, 9, 1)
    assert sentence(found) == (
        "no ranks over problems: they need 10 problems (dataset x model x scenario) with a result of all methods "
        "compared, got 9; 1 more to run"
    )


def test_variants_are_lines_of_their_own() -> None:
    lines = board() + [line(p, "a", 0.9, variant="slow, v2") for p in range(12)]
    found = overall(pd.DataFrame(lines))
    last = records(found)[-1]
    assert (last["method"], last["variant"], last["mean_rank"]) == ("a", "slow, v2", 5.0)


@pytest.mark.parametrize("problems", [12, 4])
def test_every_format(problems: int) -> None:
    found = overall(pd.DataFrame(board(problems)))
    read = pd.read_csv(io.StringIO(render_overall(found, "csv")), keep_default_na=False)
    assert read["method"].tolist() == (["a", "b", "c", "d"] if problems == 12 else [])
    plain = json.loads(render_overall(found, "json"))
    assert (plain["problems"], plain["missing"], len(plain["ranks"])) == ((12, 0, 4) if problems == 12 else (4, 6, 0))
    for form in ("table", "markdown", "latex"):
        assert ("1.00" if problems == 12 else "got 4; 6 more to run") in render_overall(found, form)
    if problems == 4:
        assert render_overall(found) == sentence(found) + "\n"  # one line
    assert (r"\toprule" in render_overall(found, "latex")) is (problems == 12)


def test_nothing_to_compare_is_said() -> None:
    one = pd.DataFrame([line(p, "a", 0.1) for p in range(12)])
    assert "two methods or more" in sentence(overall(one))
    assert "two methods or more" in render_overall(overall(one.iloc[:0]))
    with pytest.raises(UserError, match="did you mean table"):
        render_overall(overall(one), "tabel")
