"""The `raybench` commands of the documents, run one after the other on an experiment of a few seconds.

They are taken from the pages as they stand. What is put in their place: the two specs (tiny, of the same names), the
id of a trial, and `--serial`, so that no Ray starts. The commands of a cluster, of new plug-ins, `reproduce` and
`doctor`, which starts a Ray, have tests of their own (`tests/cluster`, `test_new.py`, `test_reproduce.py`).
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from raybench import spec_file
from raybench.leaderboard.query import load_trials
from raybench.run import Options, run

ROOT = Path(__file__).parent.parent
ELSEWHERE = ("reproduce", "new", "check-plugin", "doctor")
RUNS = ("run", "retry")


def commands(page: str) -> list[list[str]]:
    found = []
    for block in re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(), flags=re.S):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "raybench" in words and "pip" not in words and "ray" not in words:
                words = words[words.index("raybench") + 1 :]
                if words[0] not in ELSEWHERE:
                    found.append(words)
    return found


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_spec: Any, cli: Any) -> Path:
    """A folder with the specs that the pages name, both tiny."""
    methods = [{"name": "finetune", "space": {"epochs": {"low": 1, "high": 2}}}, "gradient_ascent"]
    tiny = make_spec(methods=methods, seeds={"train": [0, 1, 2]}, search={"trials": 1}, keep=["outputs", "weights"])
    (tmp_path / "my_comparison.yaml").write_text(yaml.safe_dump(tiny | {"name": "my_comparison"}))
    shipped = spec_file.read_spec
    known = {"quickstart": tiny | {"name": "quickstart"}}
    for module in ("raybench.spec_file", "raybench.run", "raybench.forecast", "raybench.experiment"):
        monkeypatch.setattr(f"{module}.read_spec", lambda name: known.get(name) or shipped(name), raising=False)
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("page", ["README.md", "docs/one_machine.md", "docs/specs.md", "docs/papers.md"])
def test_they_run(page: str, place: Path, cli: Any) -> None:
    done = commands(page)
    named = {word for words in done for word in words if word.startswith("raybench-runs/")}
    for folder in sorted(named):  # a page may name a run that another page makes
        name = folder.split("/")[1]
        spec = yaml.safe_load((place / "my_comparison.yaml").read_text())
        run(
            spec | {"name": "quickstart" if name == "quickstart" else "my_comparison"},
            options=Options(results=str(place / folder), store=str(place / "store"), serial=True, quiet=True),
        )
    for words in done:
        rows = load_trials(place / next(iter(sorted(named)))) if named else None
        if rows is not None:
            finals = rows[(rows["phase"] == "final") & (rows["method"] == "finetune")]
            words = [finals["trial_id"].iloc[0][:8] if word == "4f2a" else word for word in words]
        words = [word.replace("~", str(place)) for word in words]
        if words[0] in RUNS and "--serial" not in words:
            words.append("--serial")
        said = cli(*words)
        # compare may find what differs; nothing else may
        assert said.code in ((0, 3) if words[0] == "compare" else (0,)), (words, said.err)
        assert said.out.strip() or words[0] == "figures", words


@pytest.mark.parametrize(("page", "least"), [("README.md", 3), ("docs/one_machine.md", 5), ("docs/specs.md", 9)])
def test_there_is_something_to_run(page: str, least: int) -> None:
    assert len(commands(page)) >= least
