"""The documents tell the truth: tables, snippets, commands and links of README and docs/, jobs, cluster.yaml."""

from __future__ import annotations

import re
import shlex
import warnings
from pathlib import Path

import pytest
import yaml

from docs.generate import pages
from raybench.arguments import make_parser
from raybench.experiment import load_experiment, make_experiment
from raybench.registry import METHODS
from raybench.spec_file import read_spec

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)
JOBS = sorted(path for path in (ROOT / "jobs").glob("*.yaml") if path.stem != "histories")  # not an experiment


def blocks(language: str, *pages: Path) -> list[str]:
    return [block for page in pages for block in re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.S)]


def anchors(page: Path) -> set[str]:
    """What a link may name behind #, as the forges make it of headings."""
    headings = re.findall(r"(?m)^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.S))
    return {re.sub(r"[^a-z0-9_ -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_generated_parts_are_current():
    for path, text in pages().items():
        assert path.read_text() == text, f"{path.name} is not what python docs/generate.py writes"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.S)):
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def test_readme_fits_and_names_every_page():
    prose = (
        README.split("<!-- short table of methods -->")[0] + README.split("<!-- end of short table of methods -->")[1]
    )
    assert len(prose.splitlines()) < 200
    assert all(f"(docs/{page.name})" in README for page in (ROOT / "docs").glob("*.md"))


def test_readme_counts_the_methods():
    ours = [entry for entry in METHODS if not entry.reference and entry.fn.__module__.startswith("raybench.methods.")]
    assert f"{len(ours)} methods come with raybench" in README


def test_recipes_run(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    source, found = blocks("python", ROOT / "docs" / "reading.md"), {}
    recipes = re.findall(r"(?m)^## \d\.", (ROOT / "docs" / "reading.md").read_text())
    assert len(recipes) == 5
    assert len(source) >= 5
    for block in source:
        exec(block, found)  # as people paste them, one after the other
    assert "deepclean" in capsys.readouterr().out


def test_the_two_commands_of_a_newcomer_are_there():
    assert 'python -m pip install -e ".[test]" && python -m raybench run quickstart' in README
    assert 'python -m pip install -e ".[test]" && python -m pytest' in README


def test_every_command_parses():
    parser = make_parser()
    lines = [line for block in blocks("bash", *PAGES) for line in block.replace("\\\n", " ").splitlines()]
    commands = [re.search(r"(?:python -m )?\braybench (?!run quickstart$).*", line) for line in lines]
    found = [shlex.split(m.group(0), comments=True) for m in commands if m]
    assert len(found) >= 20
    for words in found:
        parser.parse_args(words[words.index("raybench") + 1 :])


@pytest.mark.parametrize("page", ["README.md", "docs/specs.md"])
def test_spec_is_valid(page):
    experiment = make_experiment(yaml.safe_load(blocks("yaml", ROOT / page)[0]))
    assert [c.variant for c in experiment.candidates if c.method == "deepclean"] == ["gamma=1", "gamma=2", "gamma=5"]


@pytest.mark.parametrize("path", JOBS, ids=lambda p: p.stem)
def test_jobs_are_valid_and_named_after_their_file(path):
    experiment = load_experiment(str(path))
    assert experiment.name == path.stem
    assert experiment.description
    assert f"`{path.stem}`" in (ROOT / "docs" / "specs.md").read_text()


def test_jobs_are_all_there():
    needed = {"quickstart", "baselines_mnist", "gamma_sweep", "lambda_sweep", "entropy_sweep"}
    assert needed <= {path.stem for path in JOBS}


def test_quickstart_ships_with_the_package():
    assert read_spec("quickstart") == yaml.safe_load((ROOT / "jobs" / "quickstart.yaml").read_text())


CLUSTERS = ["cluster.yaml", "jobs/cluster/spot_docker.yaml", "jobs/cluster/onprem.yaml"]


@pytest.mark.parametrize("name", CLUSTERS)
def test_cluster_files_pass_rays_own_validator(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.autoscaler._private.util import prepare_config, validate_config

        raw = yaml.safe_load((ROOT / name).read_text())
        config = prepare_config(raw)
        validate_config(config)
        assert name in (ROOT / "cluster.yaml").read_text() or name == "cluster.yaml"
        for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
            assert any("RAY_AUTH_MODE=token" in command and " ray start " in command for command in commands)
        assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
        if config["provider"]["type"] == "local":
            assert "--num-cpus=0" in " ".join(config["head_start_ray_commands"])
            assert raw["max_workers"] == raw["min_workers"] == len(raw["provider"]["worker_ips"])
            return
        head = config["available_node_types"][config["head_node_type"]]
        assert head["resources"]["CPU"] == 0
        workers = [t for name, t in config["available_node_types"].items() if name != config["head_node_type"]]
        assert all(t["max_workers"] >= t["min_workers"] >= 0 for t in workers)
        if "spot" in name:
            assert all(t["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot" for t in workers)
            assert "InstanceMarketOptions" not in head["node_config"]
            assert config["docker"]["image"]
        broken = yaml.safe_load((ROOT / name).read_text())
        broken["max_wrokers"] = 3
        with pytest.raises(Exception, match="max_wrokers"):
            validate_config(prepare_config(broken))


def test_rayjob_names_what_it_must():
    """What KubeRay wants of a RayJob, and raybench of a cluster: an idle head, one image, one shared place, a token."""
    job = yaml.safe_load((ROOT / "jobs" / "cluster" / "rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    head, (workers,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert cluster["authOptions"] == {"mode": "token"}
    assert 0 <= workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    pods = [group["template"]["spec"] for group in (head, workers)]
    assert len({pod["containers"][0]["image"] for pod in pods}) == 1
    (place,) = {mount["mountPath"] for pod in pods for mount in pod["containers"][0]["volumeMounts"]}
    for pod in pods:
        named = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} <= named
    command = job["spec"]["entrypoint"].split()
    assert command[:4] == ["python", "-m", "raybench", "run"]
    assert load_experiment(command[4])
    for option in ("--results", "--store"):
        assert command[command.index(option) + 1].startswith(place + "/")


def test_no_path_of_one_machine_or_registry_host_in_the_project():
    bad = re.compile(r"(?<![\w.])/(work|farm|root)/|pypi\.org|pythonhosted\.org|registry\.npmjs")
    suffixes = {".py", ".md", ".yaml", ".toml", ".sh", ".json"}
    files = [
        p for p in ROOT.rglob("*") if p.suffix in suffixes and ".git" not in p.parts and "raybench-runs" not in p.parts
    ]
    hits = [str(p) for p in files if p.is_file() and p != Path(__file__) and bad.search(p.read_text(errors="ignore"))]
    assert not hits
