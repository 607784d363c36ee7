"""``raybench leaderboard`` on shipped rows: several folders, forced ranks, ranks over problems; quick to start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from raybench import cli

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
