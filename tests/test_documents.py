"""The documents tell the truth: README tables, snippets and commands, jobs, cluster.yaml."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import yaml

from raybench.arguments import make_parser
from raybench.experiment import load_experiment, make_experiment
from raybench.run import Options, run
from raybench.spec_file import read_spec

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
JOBS = sorted(path for path in (ROOT / "jobs").glob("*.yaml") if path.stem != "histories")  # not an experiment


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def test_methods_table_is_generated():
    table = README.split("<!-- methods table -->\n")[1].split("\n<!-- end of methods table -->")[0]
    command = [sys.executable, "-m", "raybench", "list", "methods", "--format", "markdown"]  # without tests' methods
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120).stdout
    assert table == made.rstrip("\n"), "put there: raybench list methods --format markdown"


def test_the_two_commands_of_a_newcomer_are_there():
    assert 'python -m pip install -e ".[test]" && python -m raybench run quickstart' in README
    assert 'python -m pip install -e ".[test]" && python -m pytest' in README


def test_every_command_parses():
    parser = make_parser()
    lines = [line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    commands = [re.search(r"(?:python -m )?\braybench (?!run quickstart$).*", line) for line in lines]
    found = [shlex.split(m.group(0), comments=True) for m in commands if m]
    assert len(found) >= 8
    for words in found:
        parser.parse_args(words[words.index("raybench") + 1 :])


def test_spec_of_the_readme_is_valid():
    experiment = make_experiment(yaml.safe_load(blocks("yaml")[0]))
    assert [c.variant for c in experiment.candidates if c.method == "deepclean"] == ["gamma=1", "gamma=2", "gamma=5"]


def test_own_method_of_the_readme_is_ranked(tmp_path, monkeypatch):
    source = next(block for block in blocks("python") if "# my_method.py" in block)
    assert len(source.splitlines()) <= 60
    (tmp_path / "readme_method.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = {
        "name": "own",
        "plugins": ["readme_method"],
        "problems": [{"dataset": {"name": "digits", "train_size": 200}, "models": ["mlp"], "scenarios": ["class"]}],
        "methods": ["shrink"],
        "recipe": {"epochs": 3},
        "search": {"trials": 2, "round_size": 2},
    }
    from raybench import load_leaderboard
    from raybench.registry import METHODS

    try:
        options = Options(results=str(tmp_path / "out"), store=str(tmp_path / "store"), serial=True, quiet=True)
        outcome = run(spec, options=options)
    finally:
        METHODS._entries.pop("shrink", None)
    assert outcome.exit_code == 0, outcome.bad
    lines = load_leaderboard(tmp_path / "out").set_index("method")
    assert lines.loc["shrink", "status"] == "ok"
    assert lines.loc["shrink", "n"] == 3


@pytest.mark.parametrize("path", JOBS, ids=lambda p: p.stem)
def test_jobs_are_valid_and_named_after_their_file(path):
    experiment = load_experiment(str(path))
    assert experiment.name == path.stem
    assert experiment.description
    assert path.stem in README


def test_jobs_are_all_there():
    needed = {"quickstart", "baselines_mnist", "gamma_sweep", "lambda_sweep", "entropy_sweep"}
    assert needed <= {path.stem for path in JOBS}


def test_quickstart_ships_with_the_package():
    assert read_spec("quickstart") == yaml.safe_load((ROOT / "jobs" / "quickstart.yaml").read_text())


def test_cluster_yaml_passes_rays_own_validator():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.autoscaler._private.util import prepare_config, validate_config

        config = prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))
        validate_config(config)
        head = config["available_node_types"][config["head_node_type"]]
        assert head["resources"]["CPU"] == 0
        workers = [t for name, t in config["available_node_types"].items() if name != config["head_node_type"]]
        assert all(t["max_workers"] >= t["min_workers"] >= 0 for t in workers)
        broken = yaml.safe_load((ROOT / "cluster.yaml").read_text())
        broken["max_wrokers"] = 3
        with pytest.raises(Exception, match="max_wrokers"):
            validate_config(prepare_config(broken))
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert any("RAY_AUTH_MODE=token ray start" in command for command in commands)


def test_no_path_of_one_machine_or_registry_host_in_the_project():
    bad = re.compile(r"(?<![\w.])/(work|farm|root)/|pypi\.org|pythonhosted\.org|registry\.npmjs")
    suffixes = {".py", ".md", ".yaml", ".toml", ".sh", ".json"}
    files = [
        p for p in ROOT.rglob("*") if p.suffix in suffixes and ".git" not in p.parts and "raybench-runs" not in p.parts
    ]
    hits = [str(p) for p in files if p.is_file() and p != Path(__file__) and bad.search(p.read_text(errors="ignore"))]
    assert not hits
