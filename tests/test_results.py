"""The leaderboards that ship: they load, follow from their rows, and say how they were made."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import yaml

from docs.generate import leaderboard_page
from raybench.experiment import make_experiment
from raybench.leaderboard.query import load_leaderboard, load_trials
from raybench.leaderboard.schema import LINE
from raybench.leaderboard.statistics import t_interval

ROOT = Path(__file__).parent.parent / "results"
FOLDERS = sorted(path.parent for path in ROOT.glob("*/spec.yaml"))


def test_something_ships():
    assert {"quickstart", "mnemonic_digits"} <= {folder.name for folder in FOLDERS}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_shipped_leaderboard(folder):
    assert f"| `{folder.name}` |" in (ROOT / "README.md").read_text()
    experiment = make_experiment(yaml.safe_load((folder / "spec.yaml").read_text()))
    lines, trials = load_leaderboard(folder), load_trials(folder)
    pd.testing.assert_frame_equal(lines, pd.read_parquet(folder / "leaderboard.parquet"), check_like=True)
    assert not lines.duplicated(list(LINE)).any()
    assert set(lines["status"]) <= {"ok", "skipped"}
    assert trials["trial_id"].is_unique
    assert set(trials["experiment"]) == {experiment.name}
    finals = trials[(trials["phase"] == "final") & (trials["status"] == "ok")]
    for line in lines[(lines["kind"] == "method") & (lines["status"] == "ok")].to_dict("records"):
        rows = finals
        for column in LINE:
            rows = rows[rows[column] == line[column]]
        assert sorted(rows["train_seed"]) == sorted(experiment.train_seeds)
        expected = t_interval(rows.groupby("train_seed")["distance"].mean().tolist())
        assert line["distance"] == pytest.approx(expected.mean)
        assert line["distance_hi"] == pytest.approx(expected.hi, nan_ok=True)  # one seed has no interval
        assert isinstance(json.loads(line["hparams"]), dict)  # empty where a method has nothing to set


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_page_is_what_the_rows_say(folder):
    assert (folder / "leaderboard.md").read_text() == leaderboard_page(folder), "make it: python docs/generate.py"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_what_fails_a_gate_is_counted_and_not_ranked(folder):
    lines = load_leaderboard(folder)
    lines = lines[(lines["kind"] == "method") & (lines["status"] == "ok")]
    failed = lines[[any(value is False for value in json.loads(gates).values()) for gates in lines["gates"]]]
    assert failed["rank_group"].isna().all()
    assert not failed["on_pareto_front"].fillna(False).any()
    page = (folder / "leaderboard.md").read_text()
    said = [int(n) for n in re.findall(r"(?m)^(\d+) lines? that fails? a sanity gate", page)]
    assert sum(said) == len(failed)


def test_shipped_quickstart_is_the_spec_of_today():
    shipped = yaml.safe_load((ROOT / "quickstart" / "spec.yaml").read_text())
    assert shipped == yaml.safe_load((ROOT.parent / "jobs" / "quickstart.yaml").read_text())


def test_readme_shows_the_shipped_table():
    from raybench.leaderboard.query import render

    readme = (ROOT.parent / "README.md").read_text()
    shown = readme.split("<!-- quickstart table -->\n```text\n")[1].split("```\n<!-- end of quickstart table -->")[0]
    whole = render(load_leaderboard(ROOT / "quickstart"), "table")
    assert shown.strip() == whole.split("more metrics in csv")[0].strip()


@pytest.mark.parametrize("path", sorted(ROOT.glob("reproduce_*/reproduce.parquet")), ids=lambda p: p.parent.name)
def test_shipped_comparison_is_the_page_of_its_file(path):
    from raybench.leaderboard.published import read_published
    from raybench.reproduce import page

    _, name, scale = path.parent.name.split("_")
    made = page(read_published(name), scale, pd.read_parquet(path))
    assert path.with_name("reproduce.md").read_text() == made
