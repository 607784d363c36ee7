"""``raybench reproduce``: the command, the files it leaves, resume, and a real run of the smallest spec."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from raybench import arguments as command_line
from raybench.errors import UserError
from raybench.leaderboard.comparison import SCHEMA, VERDICTS
from raybench.leaderboard.published import Published, parse_published, published_names
from raybench.reproduce import page, spec_of, summary, table
from raybench.spec_file import read_spec, shipped_specs

PUBLISHED = {
    "title": "A paper",
    "paper": "arXiv:1",
    "tables": [
        {
            "id": "one", "title": "Table 1", "source": "p. 3", "evidence": "stated", "unit": "percent",
            "rounding": 0.05,
            "dataset": "cifar10", "model": "resnet18", "scenario": "class(0)", "metric": "test_accuracy",
            "columns": [{}],
            "rows": [
                {"row": "Fine-tune", "method": "finetune", "values": [[91.0, 0.5]]},
                {"row": "Theirs", "method": None, "values": [95.0]},
                {"row": "Fine-tune", "method": "finetune", "metric": "unlearn_s", "unit": "s", "values": [60],
                 "reason": "another machine"},
            ],
        }
    ],
    "scales": {"tiny": [{"published": ["cifar10", "resnet18", "class(0)"],
                         "ours": ["digits(train_size=300)", "mlp(hidden=8)", "class(0)"], "reason": "300 digits"}]},
}  # fmt: skip


@pytest.fixture
def small(make_spec: Any, monkeypatch: pytest.MonkeyPatch) -> Published:
    """The document ``deepclean`` and its tiny spec, replaced by ones that run in a second."""
    published = parse_published("deepclean", PUBLISHED)
    spec = make_spec(methods=["original", "retrain", {"name": "finetune", "hparams": {"lr": 0.01, "epochs": 1}}])
    spec |= {"name": "reproduce_deepclean_tiny", "description": "Needs  nothing.", "gold_seeds": 1}
    monkeypatch.setattr("raybench.reproduce.read_published", lambda name: published)
    monkeypatch.setattr("raybench.leaderboard.published.read_published", lambda name: published)
    for module in ("raybench.reproduce", "raybench.run", "raybench.forecast"):
        monkeypatch.setattr(f"{module}.read_spec", lambda name: spec)
    return published


def test_command_names_the_documents() -> None:
    assert tuple(published_names()) == command_line.DOCUMENTS
    for name in command_line.DOCUMENTS:
        for scale in ("tiny", "full"):
            assert spec_of(name, scale) in shipped_specs()


def test_unknown_names_have_a_hint(cli: Any) -> None:
    said = cli("reproduce", "mnemonics")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "did you mean mnemonic?" in said.err
    said = cli("reproduce", "gkt", "--scale", "fulll")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "did you mean full?" in said.err
    with pytest.raises(UserError, match="did you mean rewind"):
        spec_of("rewinds", "tiny")
    with pytest.raises(UserError, match="did you mean tiny"):
        spec_of("rewind", "tinny")


@pytest.mark.parametrize("name", ["mnemonic", "deepclean"])
def test_full_says_what_it_needs_and_missing_data_is_one_line(cli: Any, name: str, tmp_path: Path) -> None:
    said = cli("reproduce", name, "--scale", "full", "--serial", "--data", str(tmp_path / "none"), "--results", "out")
    assert said.code == 2
    told, error = said.err.splitlines()
    assert "Needs one GPU, about" in told
    assert " hours" in told
    assert error.startswith("raybench: dataset ")
    assert not (tmp_path / "out").exists()


def test_run_compare_and_go_on(cli: Any, small: Published, tmp_path: Path) -> None:
    first = cli("reproduce", "deepclean", "--serial", "--results", "out")
    assert first.code == 0, first.err
    assert first.err.startswith("reproduce_deepclean_tiny: Needs nothing.")
    assert "3 cells: 2 not comparable, 1 not built." in first.out
    assert "not comparable [1]" in first.out
    assert "[1] here digits(train_size=300) / mlp(hidden=8) / class(0): 300 digits" in first.out
    parquet = pq.read_table(tmp_path / "out" / "reproduce.parquet")
    assert parquet.schema.names == SCHEMA.names
    rows = parquet.to_pylist()
    assert [row["verdict"] for row in rows] == ["not comparable", "not built", "not comparable"]
    assert rows[0]["published"] == pytest.approx(0.91)
    assert rows[0]["published_sd"] == pytest.approx(0.005)
    assert rows[0]["difference"] == pytest.approx(rows[0]["ours"] - 0.91)
    assert 0.0 <= rows[0]["ours"] <= 1.0
    assert rows[2]["ours"] > 0.0
    text = (tmp_path / "out" / "reproduce.md").read_text()
    assert "| Fine-tune | cifar10 / resnet18 / class(0) | test_accuracy % | 91.0 ± 0.5 |" in text
    assert "Source: p. 3 (stated)." in text

    again = cli("reproduce", "deepclean", "--serial", "--results", "out")
    assert "0 trials run now (0 reference models trained)" in again.out
    assert pq.read_table(tmp_path / "out" / "reproduce.parquet") == parquet


def test_plan_trains_nothing(cli: Any, small: Published, tmp_path: Path) -> None:
    said = cli("reproduce", "deepclean", "--plan", "--results", "out")
    assert said.code == 0
    assert "references" in said.out
    assert not (tmp_path / "out").exists()


def frame(**changes: Any) -> pd.DataFrame:
    row = dict.fromkeys(SCHEMA.names) | {
        "table": "one", "row": "A|B", "dataset": "d", "model": "m", "scenario": "s", "metric": "speedup",
        "unit": "ratio", "published": 3.0, "ours": 2.5, "ours_lo": 2.0, "ours_hi": 3.0, "difference": -0.5,
        "verdict": "agrees", "reason": "", "evidence": "stated", "source": "p. 3", "n": 3,
    }  # fmt: skip
    return pd.DataFrame([row | changes, row | {"row": "C", "verdict": "not run", "reason": "why", "ours": None}])


def test_units_notes_and_bars_in_the_texts() -> None:
    published = parse_published("x", PUBLISHED)
    given = frame()
    assert "| A\\|B | d / m / s | speedup | 3.0 | 2.5 ± 0.5 | 3 | -0.50 | agrees |" in page(published, "tiny", given)
    assert "1. why" in page(published, "tiny", given)
    assert "not run [1]" in table(published, given)
    assert summary(given) == "2 cells: 1 agrees, 1 not run."
    assert set(given["verdict"]) <= set(VERDICTS)
    fraction = page(published, "tiny", frame(unit="fraction", metric="e_f", published=0.5, ours=0.25, difference=-0.25))
    assert "| e_f % | 50.0 | 25.0 ± 275.0 | 3 | -25.0 |" in fraction


@pytest.mark.slow
def test_smallest_spec_for_real(cli: Any) -> None:
    """AFIM on digits, about two minutes: every line of the spec gives a number, and the document none."""
    said = cli("reproduce", "afim", "--serial", "--results", "out")
    assert said.code == 0, said.err
    rows = pq.read_table("out/reproduce.parquet").to_pandas()
    run = rows[rows["dataset"] == "mnist"]
    assert set(run["verdict"]) == {"not comparable"}
    assert run["ours"].notna().all()
    assert run["published"].isna().all()
    assert cli("run", "reproduce_afim_tiny", "--serial", "--results", "out").out.count("0 trials run now") == 1


def test_descriptions_say_time_and_data() -> None:
    for name in shipped_specs():
        if name.startswith("reproduce_"):
            text = read_spec(name)["description"]
            assert re.search(r"about \d+ (minutes|hours)", " ".join(text.split())), name
            assert "--data" in text or "digits (in the package)" in text, name
