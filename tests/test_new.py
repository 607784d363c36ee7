"""``raybench new`` and ``raybench check-plugin``: what is written works as it is, in a package that is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from raybench.errors import UserError
from raybench.new import write_package

KINDS = ("method", "model", "dataset", "scenario", "metric")
ONE_EACH = {
    "name": "one_each",
    "problems": [
        {
            "dataset": {"name": "my_dataset", "train_size": 300, "test_size": 80},
            "models": [{"name": "my_model", "width": 4}],
            "scenarios": [{"my_scenario": {"label": 1, "fraction": 0.5}}],
            "recipe": {"epochs": 12, "batch_size": 16, "lr": 0.05},
        }
    ],
    "methods": ["finetune", {"name": "my_method", "space": {"epochs": {"low": 1, "high": 1}}}],
    "metrics": ["retain_accuracy", "forget_accuracy", "test_accuracy", "distance", "my_metric"],
    "seeds": {"train": [0, 1, 2]},
    "search": {"trials": 1},
    "curves": False,
}


def started(*command: object, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, ``path`` in front of what it imports from."""
    paths = [str(path)] if path else []
    paths += filter(None, [os.environ.get("PYTHONPATH"), str(Path(__file__).parent.parent)])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "RAYBENCH_STORE": str(cwd / "store")}
    words = [sys.executable, "-m", *map(str, command)]
    return subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=500)


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A folder with a new package of each kind."""
    for kind in KINDS:
        write_package(kind, f"my_{kind}", str(tmp_path / f"my_{kind}"))
    return tmp_path


def test_one_of_each_kind_installed_and_ranked(packages: Path) -> None:
    """As another person's packages: built and installed by pip, found through their entry points, run together."""
    site = packages / "site"
    folders = [f"./my_{kind}" for kind in KINDS]
    how = ("--no-deps", "--no-build-isolation", "--quiet", "--disable-pip-version-check", "--target", site)
    done = started("pip", "install", *how, *folders, cwd=packages)
    assert done.returncode == 0, done.stderr
    (packages / "spec.yaml").write_text(yaml.safe_dump(ONE_EACH))
    done = started("raybench", "run", "spec.yaml", "--serial", "--results", "out", cwd=packages, path=site)
    assert done.returncode == 0, done.stderr
    lines = pd.read_parquet(packages / "out" / "leaderboard.parquet").set_index("method")
    assert set(lines["dataset"]) == {"my_dataset(test_size=80, train_size=300)"}
    assert set(lines["model"]) == {"my_model(width=4)"}
    ours = lines.loc["my_method"]
    assert (ours["status"], ours["n"]) == ("ok", 3)
    assert 0 < ours["my_metric"] < 1
    assert ours["my_metric_gap"] == pytest.approx(ours["my_metric"] - ours["my_metric_retrained"])
    assert ours["rank_group"] >= 1 or ours["unresolved"]


@pytest.mark.parametrize("kind", KINDS[1:])
def test_what_is_written_keeps_the_rules_and_passes_its_own_tests(kind: str, packages: Path) -> None:
    folder = packages / f"my_{kind}"
    done = started("raybench", "check-plugin", ".", "--format", "json", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert {(record["kind"], record["name"]) for record in found} == {(f"{kind}s", f"my_{kind}")}
    assert {record["status"] for record in found} == {"ok"}
    done = started("pytest", "-q", "-p", "no:cacheprovider", cwd=folder)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def test_the_method_that_is_written_keeps_the_rules_and_passes_its_own_tests(packages: Path) -> None:
    done = started("pytest", "-q", "-p", "no:cacheprovider", cwd=packages / "my_method")
    assert done.returncode == 0, done.stdout


def test_the_spec_beside_each_is_valid(packages: Path) -> None:
    script = packages / "valid.py"
    script.write_text(
        "import sys\nfrom raybench.experiment import load_experiment\n"
        f"for kind in {KINDS}:\n    sys.path.insert(0, f'my_{{kind}}')\n"
        "    print(load_experiment(f'my_{kind}/my_{kind}.yaml').name)\n"
    )
    done = subprocess.run([sys.executable, script], cwd=packages, capture_output=True, text=True, timeout=200)
    assert done.stdout.split() == [f"my_{kind}" for kind in KINDS], done.stderr


def test_a_module_is_at_most_sixty_lines(packages: Path) -> None:
    for kind in KINDS:
        assert len((packages / f"my_{kind}" / f"my_{kind}.py").read_text().splitlines()) <= 60


BROKEN = '''
from raybench.registry import METRICS, SCENARIOS, NoParameters
from raybench.data import Request


@METRICS.register("too_large", range=(0.0, 1.0))
def too_large(outputs, context):
    """Out of its range."""
    return 1.0 + float(outputs["forget"].confidences.mean())


@SCENARIOS.register("greedy")
def greedy(images, labels, num_classes, params, rng):
    """Forgets everything."""
    return Request(labels >= 0)
'''


def test_broken_rules_are_named(tmp_path: Path) -> None:
    (tmp_path / "guilty.py").write_text(BROKEN)
    for target in ("guilty", "."):
        done = started("raybench", "check-plugin", target, cwd=tmp_path)
        assert done.returncode == 1, done.stderr
        assert "broken   metric too_large: number in range or a reason (sample): must be finite and in" in done.stdout
        assert "metric too_large: broken logits have a reason (nan): logits with nan give nan" in done.stdout
        assert "broken   scenario greedy: request is sound: must forget some of 60, got 60" in done.stdout
        assert "ok       scenario greedy: function and key are one word" in done.stdout
        assert "broken" in done.stderr


@pytest.mark.parametrize(
    ("files", "target", "said"),
    [
        ({}, "absent", "plugins must be importable module names, got 'absent'"),
        ({}, ".", "a plug-in folder must have a Python module, got none"),
        ({"empty_one.py": "x = 1\n"}, "empty_one", "a plug-in must register something, got nothing from empty_one"),
        ({"bad_one.py": "1 / 0\n"}, ".", "plugins must import without an error, got ZeroDivisionError from 'bad_one'"),
        ({"pyproject.toml": "[project\n"}, ".", "must be TOML, got"),
        (
            {"pyproject.toml": '[project.entry-points."raybench.method"]\na = "a"\n'},
            ".",
            "entry-point group of a plug-in must be a registered name, got 'raybench.method'; did you mean "
            "raybench.methods",
        ),
    ],
)
def test_what_is_no_plugin_is_one_line(files, target, said, tmp_path: Path, monkeypatch, cli) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    try:
        found = cli("check-plugin", target)
    finally:
        sys.modules.pop("empty_one", None)
    assert found.code == 2
    assert said in found.err
    assert found.err.count("\n") == 1


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("method", "My-Method", "must be a lower-case word of Python such as my_method, got 'My-Method'"),
        ("metric", "class", "must be a lower-case word of Python such as my_metric, got 'class'"),
        ("method", "finetune", "must be free, got 'finetune', which raybench has"),
        ("scenario", "json", "is also its module's, got 'json', which an installed module has"),
    ],
)
def test_names_that_cannot_be(kind: str, name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        write_package(kind, name, str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def test_nothing_is_overwritten(tmp_path: Path, cli) -> None:
    said = cli("new", "method", "mine")
    assert said.code == 0
    assert "raybench check-plugin ." in said.out
    files = sorted((tmp_path / "mine").iterdir())
    assert [path.name for path in files] == ["mine.py", "mine.yaml", "pyproject.toml", "test_mine.py"]
    files[0].write_text("# changed\n")
    again = cli("new", "method", "mine")
    assert again.code == 2
    assert "overwrites nothing" in again.err
    assert files[0].read_text() == "# changed\n"
    done = started("raybench", "new", "method", "mine", cwd=tmp_path)  # python -m has the folder on its path
    assert (done.returncode, done.stderr) == (2, again.err)
    other = cli("new", "method", "mine", "--into", str(files[0] / "below"))
    assert other.code == 2
    assert "--into must be a folder" in other.err
