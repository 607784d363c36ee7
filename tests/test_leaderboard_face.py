"""``raybench leaderboard`` on shipped rows: several folders, forced ranks, ranks over problems; quick to start."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from raybench import cli
from raybench.leaderboard.query import write_leaderboard
from raybench.leaderboard.schema import LINE, MetricInfo
from raybench.leaderboard.store import ResultStore

ROOT = Path(__file__).parent.parent
PROBE = """
import sys
from raybench.cli import main
code = main(sys.argv[1:])
assert code == 0, code
print(*[m for m in ("torch", "ray", "optuna", "scipy.stats", "sklearn") if m in sys.modules], file=sys.stderr)
"""


def folder(name: str) -> str:
    return str(ROOT / "results" / name)


@pytest.mark.parametrize("options", [[], ["--force-rank"], ["--overall"], ["--pareto", "--format", "csv"]])
def test_it_imports_nothing_heavy(options: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, "leaderboard", folder("quickstart"), *options],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "\n")


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["leaderboard", *arguments])
    return code, *capsys.readouterr()


def test_forced_ranks_are_marked(capsys: pytest.CaptureFixture[str]) -> None:
    _, plain, _ = said(capsys, folder("gkt_mnist_search"))
    assert "not ranked, fewer than 3 train seeds: gkt on " in plain
    code, forced, _ = said(capsys, folder("gkt_mnist_search"), "--force-rank")
    assert code == 0
    assert "1 forced" in forced


def test_several_folders_are_one_leaderboard(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("mnemonic_digits", "deepclean_mnist", "mnemonic_several")
    _, text, _ = said(capsys, *map(folder, names), "--format", "json")
    lines = json.loads(text)
    single = [json.loads(said(capsys, folder(name), "--format", "json")[1]) for name in names]
    assert len(lines) == sum(map(len, single))
    assert {line["scenario"] for line in lines} == {line["scenario"] for one in single for line in one}
    code, out, err = said(capsys, folder("quickstart"), folder("mnemonic_digits"))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "digits / lenet5 / class(0)" in err
    assert "different recipe" in err


@pytest.mark.parametrize("form", ["table", "markdown", "csv", "json", "latex"])
def test_too_few_problems_are_said_in_every_format(capsys: pytest.CaptureFixture[str], form: str) -> None:
    code, out, _ = said(capsys, folder("quickstart"), "--overall", "--format", form)
    assert code == 0
    if form == "json":
        assert json.loads(out)["missing"] == 7
    elif form == "csv":
        assert out.strip() == "rank,method,variant,mean_rank,groups,last,problems"
    else:
        assert "got 3; 7 more to run" in out


def test_gated_lines_are_shown_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    _, hidden, _ = said(capsys, folder("quickstart"))
    # Which gates fail follows from the rows that ship; how many lines they hide is said.
    assert "1 line that fails a sanity gate is hidden (retain_above_chance" in hidden
    assert "--gated shows" in hidden
    _, shown, _ = said(capsys, folder("quickstart"), "--gated")
    assert "is hidden" not in shown
    assert len(shown.splitlines()) == len(hidden.splitlines())  # a line more, a note less


def test_ten_problems_are_ranked_over(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Twelve problems, written as a run writes them: a is best on ten, b on two, c is last on all."""
    store = ResultStore.open_for_writing(tmp_path / "many", [MetricInfo("distance", 1, "fraction", "lower")])
    rows = []
    for problem, seed, method in itertools.product(range(12), range(3), "abc"):
        order = "bac" if problem < 2 else "abc"
        row = dict.fromkeys((*LINE, "experiment", "hparams", "spec"), "") | {"hparams": "{}", "spec": "{}"}
        row |= {"trial_id": f"{problem}{seed}{method}", "attempt": 0, "protocol": "1", "dataset": "digits"}
        row |= {"model": "mlp", "scenario": f"class({problem})", "method": method, "method_version": 1}
        row |= {"phase": "final", "train_seed": seed, "unlearn_seed": 0, "status": "ok", "gates": "{}"}
        rows.append(row | {"distance": 0.1 * order.index(method) + 0.001 * seed, "unlearn_s": 1.0})
    store.append(rows)
    write_leaderboard(tmp_path / "many")
    code, out, _ = said(capsys, str(tmp_path / "many"), "--overall", "--format", "json")
    assert code == 0
    found = json.loads(out)
    mean = {"a": 14 / 12, "b": 22 / 12, "c": 3.0}
    assert {r["method"]: r["mean_rank"] for r in found["ranks"]} == pytest.approx(mean)
    # Friedman by hand, without ties: 12 N / (k (k + 1)) sum (R - (k + 1) / 2)^2
    assert found["statistic"] == pytest.approx(12 * 12 / 12 * sum((rank - 2) ** 2 for rank in mean.values()))
    # Nemenyi: 2.343 sqrt(3 * 4 / (6 * 12)) = 0.957, so a and b share a letter and c stands apart.
    assert found["critical_difference"] == pytest.approx(0.957, abs=1e-3)
    assert [r["groups"] for r in found["ranks"]] == ["a", "a", "b"]
    assert "critical difference 0.957" in said(capsys, str(tmp_path / "many"), "--overall")[1]


def test_overall_of_one_model_and_what_it_does_not_take(capsys: pytest.CaptureFixture[str]) -> None:
    assert "got 2; 8 more to run" in said(capsys, folder("quickstart"), "--overall", "--model", "mlp")[1]
    for more, words in ((["--model", "mpl"], "did you mean mlp?"), (["--pareto"], "takes no --by, --pareto")):
        code, out, err = said(capsys, folder("quickstart"), "--overall", *more)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert words in err
