"""Separate hosts (network namespaces with their own /tmp, hostname, processes and token file): what one host cannot
show. Needs root and iproute2; run with ``python -m pytest -m rig tests/cluster``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

ROOT = Path(__file__).parents[2]
TOOL = Path(__file__).parent / "netns-ray.sh"
pytestmark = [
    pytest.mark.rig,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(not all(map(shutil.which, ("ip", "unshare", "nsenter"))), reason="needs iproute2, util-linux"),
]


class Rig:
    """A head without CPUs, two workers, and a client outside the cluster."""

    def __init__(self, folder):
        self.environment = os.environ | {"RAYRIG": str(folder), "RAYRIG_TAG": "rbt", "RAYRIG_NET": "10.78.0"}
        self.shared = folder / "shared"

    def __call__(self, *arguments, cwd=None, check=True, timeout=300):
        done = subprocess.run(
            ["bash", str(TOOL), *map(str, arguments)],
            env=self.environment,
            cwd=cwd or ROOT,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def submit(self, spec, *options):
        """The process of ``ray job submit`` on the client host. Each has a folder of its own to submit: Ray refuses
        one that changes while it is packed."""
        checkout = Path(tempfile.mkdtemp(dir=self.shared))
        shutil.copytree(ROOT / "raybench", checkout / "raybench", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "jobs", checkout / "jobs")
        shutil.copy(Path(__file__).parent / "plugins" / "cluster_fakes.py", checkout)
        if not isinstance(spec, str):
            (checkout / "spec.yaml").write_text(yaml.safe_dump(spec))
            spec = "spec.yaml"
        job = ["ray", "job", "submit", "--working-dir", ".", "--", "python", "-m", "raybench", "run", spec]
        return subprocess.Popen(
            ["bash", str(TOOL), "exec", "client", *job, "--address", "auto", *map(str, options)],
            env=self.environment,
            cwd=checkout,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture(scope="module")
def rig():
    folder = Path(tempfile.mkdtemp(prefix="rbrig-"))
    rig = Rig(folder)
    rig("up", 3, "--venv", sys.prefix, "--cpus", 2, "--auth", "token")
    yield rig
    rig("down", check=False)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def many(make_spec):
    """Enough trials of a second that every node gets some."""
    sleepers = {"name": "sleeper", "sweep": {"seconds": [1.0 + i / 100 for i in range(12)]}}
    return make_spec(methods=["finetune", "gradient_ascent", sleepers], plugins=["cluster_fakes"])


def finish(process, timeout=400):
    out, _ = process.communicate(timeout=timeout)
    return out


def test_a_submitted_job_uses_all_worker_nodes(rig, many):
    results = rig.shared / "results"
    process = rig.submit(many, "--results", results)
    out = finish(process)
    assert process.returncode == 0, out
    rows = pd.read_parquet(results / "trials")
    assert set(rows["status"]) == {"ok"}
    assert set(rows["node"]) == {"node1", "node2"}
    assert not rows["trial_id"].duplicated().any()
    assert (results / "leaderboard.parquet").exists()
    assert (rig.shared / ".raybench-store" / "references").exists()  # the store lies beside the results


def test_quickstart_as_a_job_on_three_hosts(rig):
    results = rig.shared / "quickstart"
    process = rig.submit("jobs/quickstart.yaml", "--results", results)
    out = finish(process, timeout=900)
    assert process.returncode == 0, out
    rows = pd.read_parquet(results / "trials")
    assert set(rows["node"]) == {"node1", "node2"}
    assert set(rows["status"]) <= {"ok", "skipped"}
    lines = pd.read_parquet(results / "leaderboard.parquet")
    assert len(lines) == 21  # seven methods on three problems


def test_storage_that_a_node_does_not_see_is_one_line(rig, make_spec):
    process = rig.submit(make_spec(), "--results", "/tmp/mine")
    out = finish(process)
    assert process.returncode != 0
    said = [line for line in out.splitlines() if "must be shared by all nodes" in line]
    assert said
    assert "results folder" in said[0]
    assert "/tmp/mine" in said[0]
    assert "node1" in said[0] or "node2" in said[0]
    assert "Traceback" not in out


def test_a_power_cut_of_a_worker_loses_no_trial(rig, many):
    calm = pd.read_parquet(rig.shared / "results" / "trials")
    results = rig.shared / "cut"
    process = rig.submit(many, "--results", results, "--store", rig.shared / "cut-store")
    deadline = time.time() + 200
    while len(list((results / "trials").glob("*.parquet"))) < 8:
        assert time.time() < deadline
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.2)
    rig("kill", 2)
    out = finish(process)
    rig("add", 2)
    assert process.returncode == 0, out
    rows = pd.read_parquet(results / "trials")
    assert sorted(rows["trial_id"]) == sorted(calm["trial_id"])
    assert set(rows["status"]) == {"ok"}
