"""``ray job submit`` to a head that was started with ``ray start --head`` and token authentication."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).parent / "ray")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def head(tmp_path):
    """Environment of a client of the head. No ``ray stop``: that would end every Ray on this machine."""
    home = tmp_path / "home"
    home.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"HOME": str(home), "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])  # as if activated
    subprocess.run([RAY, "get-auth-token", "--generate"], env=environment, check=True, capture_output=True, timeout=60)
    # Ray's sockets live below its temporary folder, and their paths may not be longer than 107 characters.
    with tempfile.TemporaryDirectory(prefix="rb-", ignore_cleanup_errors=True) as short:
        yield from started(environment, short, tmp_path / "head.log")


def started(environment, folder, log):
    dashboard = free_port()
    options = [f"--port={free_port()}", f"--dashboard-port={dashboard}", f"--temp-dir={folder}", "--num-cpus=2"]
    # Ray's own default is one port per machine, and other tests have a Ray here too: no agent, no jobs.
    options += [f"--dashboard-agent-listen-port={free_port()}", f"--metrics-export-port={free_port()}"]
    with log.open("w") as out:
        process = subprocess.Popen(
            [RAY, "start", "--head", "--block", *options],
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    client = environment | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    ask = [RAY, "job", "list"]
    try:
        deadline = time.time() + 120
        while subprocess.run(ask, env=client, capture_output=True, timeout=60, check=False).returncode:
            assert time.time() < deadline, log.read_text()
            assert process.poll() is None, log.read_text()
            time.sleep(1)
        yield client
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture
def checkout(tmp_path):
    """A copy of the code under a version of its own, so that rows show which code ran."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "raybench", folder / "raybench", ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "raybench" / "version.py").open("a") as file:
        file.write('\n__version__ = "0.0.job"\n')
    return folder


def submit(client, checkout, *arguments):
    command = [RAY, "job", "submit", "--working-dir", ".", "--", "python", "-m", "raybench", "run", *arguments]
    deadline = time.time() + 120
    while True:
        done = subprocess.run(
            command, cwd=checkout, env=client, capture_output=True, text=True, timeout=300, check=False
        )
        if "No available agent to submit job" not in done.stderr or time.time() > deadline:  # the head has just started
            return done
        time.sleep(1)


def assert_followed(client, checkout, results):
    """``jobs/submit.py``: a second job finds nothing to do, a third is not made; a run's exit code comes back."""

    def ask(*more):
        command = [sys.executable, str(ROOT / "jobs" / "submit.py"), "spec.yaml", "--results", str(results), *more]
        environment = {k: v for k, v in client.items() if k != "RAY_AUTH_MODE"}  # it looks for the token itself
        return subprocess.run(
            command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=300, check=False
        )

    first, second = ask(), ask("--no-wait")
    assert (first.returncode, second.returncode) == (0, 0), first.stdout + first.stderr
    job = first.stdout.split(":")[0]
    assert first.stdout.startswith(f"{job}: submitted\n")
    assert str(results) in first.stdout  # the run's own log
    assert second.stdout == f"{job}: done\n"
    bad = ask("--set", "methods=[]")
    assert bad.returncode == 2, bad.stdout + bad.stderr
    assert "methods" in bad.stdout


def test_a_submitted_job_runs_the_submitted_code_on_the_cluster(head, checkout, tmp_path, make_spec):
    (checkout / "spec.yaml").write_text(yaml.safe_dump(make_spec()))
    results = tmp_path / "results"
    done = submit(head, checkout, "spec.yaml", "--address", "auto", "--results", str(results))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = pd.read_parquet(results / "trials")
    assert set(rows["raybench_version"]) == {"0.0.job"}
    assert set(rows["status"]) == {"ok"}
    assert rows["ray_version"].notna().all()
    assert (results / "leaderboard.parquet").exists()

    assert_followed(head, checkout, results)
    relative = submit(head, checkout, "spec.yaml", "--address", "auto", "--results", "here")
    assert relative.returncode != 0
    assert "--results must be an absolute folder or a URL inside a submitted job" in relative.stdout
    stranger = submit({**head, "RAY_AUTH_MODE": "disabled"}, checkout, "spec.yaml", "--address", "auto")
    assert stranger.returncode != 0  # the token is asked for
    assert "raybench" not in stranger.stdout
