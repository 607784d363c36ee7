"""``raybench leaderboard --select``: from shipped rows, and around a run of what a rule lacks."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from raybench.errors import UserError
from raybench.experiment import make_experiment
from raybench.leaderboard.gathered import load_leaderboards
from raybench.leaderboard.query import load_leaderboard
from raybench.leaderboard.schema import LINE
from raybench.leaderboard.store import ResultStore
from raybench.selected import explain, select

ROOT = Path(__file__).parent.parent
SHIPPED = sorted(path.parent for path in (ROOT / "results").glob("*/searches"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_the_rule_of_the_run_gives_its_leaderboard_again(path: Path) -> None:
    found = select(path, "distance")
    assert (found.missing, found.command) == ([], None)
    expected = load_leaderboard(path)
    pd.testing.assert_frame_equal(
        found.leaderboard.sort_values(list(LINE), ignore_index=True)[list(expected.columns)],
        expected.sort_values(list(LINE), ignore_index=True),
        check_dtype=False,
    )


def test_another_rule_keeps_what_it_selects_alike_and_names_the_rest() -> None:
    path = ROOT / "results" / "quickstart"
    found, all_lines = select(path, "knee"), load_leaderboard(path)
    searched = all_lines[all_lines["selected_by"].notna()]
    shown = found.leaderboard[found.leaderboard["selected_by"].notna()]
    assert set(shown["selected_by"]) == {"knee"}
    assert len(found.leaderboard) + len(found.missing) == len(all_lines)
    assert 0 < len(shown) < len(searched)
    both = shown.merge(searched, on=list(LINE), suffixes=("", "_before"))
    assert (both["hparams"] == both["hparams_before"]).all()
    assert (both["tuning_s"] == both["tuning_s_before"]).all()
    text = explain(found, "knee")
    assert text[0] == f"not shown for --select knee: {len(found.missing)} of {len(searched)} searched lines"
    assert text[-1].endswith(f"raybench run {path}/spec.yaml --results {path} --set search.select=knee")


def test_nothing_heavy_is_imported_but_for_the_papers_defaults() -> None:
    probe = "import sys; from raybench.cli import main; assert main(sys.argv[1:]) == 0; print(*sys.modules)"
    for rule, heavy in (("knee", False), ("paper", True)):
        arguments = [sys.executable, "-c", probe, "leaderboard", str(ROOT / "results" / "quickstart"), "--select", rule]
        done = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, timeout=120, check=True)
        modules = done.stdout.splitlines()[-1].split()
        assert ("torch" in modules) is heavy
        assert "ray" not in modules


@pytest.mark.parametrize("form", ["table", "csv", "json"])
def test_what_is_missing_does_not_disturb_programs(cli: Any, form: str) -> None:
    said = cli("leaderboard", str(ROOT / "results" / "quickstart"), "--select", "paper", "--format", form)
    assert said.code == 0
    assert ("not shown for --select paper" in said.out) is (form == "table")
    assert ("not shown for --select paper" in said.err) is (form != "table")
    if form == "json":
        assert all(line["selected_by"] in (None, "paper") for line in json.loads(said.out))


def test_bad_questions_are_one_line(cli: Any, tmp_path: Path) -> None:
    shipped = str(ROOT / "results" / "quickstart")
    said = cli("leaderboard", shipped, shipped, "--select", "knee")
    assert (said.code, said.err) == (2, "raybench: --select works on one results folder, got 2; name one\n")
    assert "did you mean paper?" in cli("leaderboard", shipped, "--select", "papre").err
    with pytest.raises(UserError, match="did you mean knee"):
        select(shipped, "kne")
    shutil.copy(Path(shipped) / "leaderboard.parquet", tmp_path)
    with pytest.raises(UserError, match="rows in trials/"):
        select(tmp_path, "knee")


SEARCHED = {"methods": ["finetune"], "gold_seeds": 1, "seeds": {"train": [0, 1, 2]}, "recipe": {"epochs": 2}}


def test_the_command_it_prints_runs_what_is_missing(cli: Any, make_spec: Any, tmp_path: Path) -> None:
    search = {"trials": 3, "round_size": 3, "sampler": "random"}
    ran = cli("run", "{spec}", "--serial", "--quiet", "--results", "out", spec=make_spec(**SEARCHED, search=search))
    assert ran.code == 0, ran
    before = load_leaderboard(tmp_path / "out")
    tuned = before.set_index("method").loc["finetune", "hparams"]
    rule = next((rule for rule in ("paper", "knee") if select("out", rule).missing), None)
    assert rule is not None, "both rules select what distance does: choose other settings for this test"
    said = cli("leaderboard", "out", "--select", rule)
    assert said.code == 0
    assert "finetune" not in said.out.split("not shown")[0]
    command = shlex.split(said.out.split("of the run): ")[1].splitlines()[0])
    assert command == ["raybench", "run", "out/spec.yaml", "--results", "out", "--set", f"search.select={rule}"]
    assert cli(*command[1:], "--serial", "--quiet").code == 0
    found = select("out", rule)
    assert (found.missing, explain(found, rule)) == ([], [])
    line = found.leaderboard.set_index("method").loc["finetune"]
    assert (line["selected_by"], line["n"]) == (rule, 3)
    assert line["hparams"] != tuned
    # The finals of the first rule are still there, and its leaderboard comes back from them.
    again = select("out", "distance").leaderboard
    pd.testing.assert_frame_equal(again[list(before.columns)], before, check_dtype=False)


def test_rules_run_side_by_side_are_one_line_each(cli: Any, make_spec: Any) -> None:
    search = {"trials": 2, "round_size": 2, "select": ["distance", "paper"]}
    ran = cli("run", "{spec}", "--serial", "--quiet", "--results", "out", spec=make_spec(**SEARCHED, search=search))
    assert ran.code == 0, ran
    lines = load_leaderboard("out").set_index(["method", "variant"])
    assert {variant for method, variant in lines.index if method == "finetune"} == {"distance", "paper"}
    assert json.loads(lines.loc[("finetune", "paper"), "hparams"])["lr"] == 0.01
    assert lines.loc[("finetune", "paper"), "selected_by"] == "paper"
    for rule in ("distance", "paper"):
        chosen = select("out", rule)
        one = chosen.leaderboard.set_index("method").loc["finetune"]
        assert chosen.missing == []
        assert (one["variant"], one["selected_by"]) == ("", rule)
        assert one["distance"] == lines.loc[("finetune", rule), "distance"]
        assert one["tuning_s"] == lines.loc[("finetune", rule), "tuning_s"]
    knee = select("out", "knee")
    if knee.missing:
        assert knee.command.endswith("--set 'search.select=[distance, paper, knee]'")
    else:
        assert set(knee.leaderboard["variant"]) == {""}


def test_paper_is_refused_where_no_setting_is_the_default(make_spec: Any) -> None:
    def spec(sampler: str, low: int) -> dict[str, Any]:
        methods = [{"name": "finetune", "space": {"epochs": {"low": low, "high": 20}}}]
        return make_spec(methods=methods, search={"trials": 2, "sampler": sampler, "select": "paper"})

    assert make_experiment(spec("tpe", 5)).search.select == ("paper",)
    with pytest.raises(UserError, match="starts at the defaults, got grid; use tpe or random"):
        make_experiment(spec("grid", 5))
    with pytest.raises(UserError, match="inside the searched ranges, got finetune with one outside; widen its space"):
        make_experiment(spec("tpe", 11))


def test_a_search_without_the_default_says_so(cli: Any, make_spec: Any) -> None:
    search = {"trials": 2, "round_size": 2, "sampler": "grid"}
    spec = make_spec(**SEARCHED, search=search)
    assert cli("run", "{spec}", "--serial", "--quiet", "--results", "out", spec=spec).code == 0
    said = cli("leaderboard", "out", "--select", "paper")
    assert said.code == 0
    assert "finetune: the method's default is not among the settings tried" in said.out
    assert "where its sampler is tpe or random" in said.out
    assert "raybench run" not in said.out


def test_a_folder_without_finals_yet_is_empty(make_spec: Any, tmp_path: Path) -> None:
    shipped = ROOT / "results" / "quickstart"
    store = ResultStore(shipped)
    early = ResultStore.open_for_writing(tmp_path / "early", store.metrics_on_disk())
    trials = store.trials()
    rows = trials[trials["phase"] == "search"].astype(object)
    known = set(early.schema().names)
    early.append({k: None if v is pd.NaT or v != v else v for k, v in r.items() if k in known}
                 for r in rows.where(rows.notna(), None).to_dict("records"))  # fmt: skip
    early.append_searches(store.searches().to_dict("records"))
    for rule in ("distance", "knee"):
        found = select(tmp_path / "early", rule)
        assert (len(found.leaderboard), found.missing, explain(found, rule)) == (0, [], [])
    assert len(load_leaderboards([tmp_path / "early"], forced=True)) == 0
