"""Three nodes of one cluster: rows name the nodes, the head without CPUs runs no trial."""

from __future__ import annotations

import os
import subprocess
import sys

import pandas as pd
import pytest
import yaml
from ray.cluster_utils import Cluster


@pytest.fixture
def three_nodes(ray_home):
    """A head without CPUs and two nodes with two each; the names are what ``ray start --node-name`` gives."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "node_name": "head"})
    for name in ("alpha", "beta"):
        cluster.add_node(num_cpus=2, node_name=name)
    cluster.wait_for_nodes()
    yield cluster.address
    cluster.shutdown()


def run(address, folder, spec):
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    command = [sys.executable, "-m", "raybench", "run", "spec.yaml", "--address", address]
    return subprocess.run(
        [*command, "--results", str(folder / "results"), "--store", str(folder / "store")],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_every_worker_node_runs_trials_and_rows_say_which(three_nodes, tmp_path, make_spec):
    sleepers = {"name": "sleeper", "sweep": {"seconds": [1.0 + i / 100 for i in range(8)]}}
    spec = make_spec(methods=["finetune", sleepers], plugins=["cluster_fakes"], resources={"cpu": 1, "gpu": 0.25})
    done = run(three_nodes, tmp_path, spec)
    assert done.returncode == 0, done.stderr
    rows = pd.read_parquet(tmp_path / "results" / "trials")
    assert set(rows["node"]) == {"alpha", "beta"}
    assert set(rows[rows["method"] == "sleeper"]["node"]) == {"alpha", "beta"}
    assert rows["ray_version"].notna().all()
    assert set(rows["device_type"]) == {"cpu"}
    assert not rows["trial_id"].duplicated().any()
    assert "no GPU" in done.stdout + done.stderr


def test_a_request_that_fits_no_node_stops_before_anything_is_trained(three_nodes, tmp_path, make_spec):
    done = run(three_nodes, tmp_path, make_spec(resources={"cpu": 3}))
    assert done.returncode == 2
    assert "a trial must fit on one node" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list((tmp_path / "results").glob("trials/*"))
    assert not (tmp_path / "store" / "references").exists()
