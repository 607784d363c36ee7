"""The head dies, and every process of its node with it: on a new head the same command goes on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from raybench.leaderboard.schema import comparable
from raybench.leaderboard.store import ResultStore

RAY = str(Path(sys.executable).parent / "ray")
pytestmark = pytest.mark.slow


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Head:
    """``ray start --head`` at one address, as often as need be. No ``ray stop``: that ends every Ray here."""

    def __init__(self, environment, folder):
        self.environment, self.folder = environment, folder
        self.port = free_port()
        self.process = None

    def start(self):
        ports = {"port": self.port}
        ports |= {name: free_port() for name in ("dashboard-agent-listen-port", "metrics-export-port")}
        options = [f"--{name}={port}" for name, port in ports.items()]
        more = [f"--temp-dir={self.folder}", "--num-cpus=2", "--include-dashboard=false"]
        self.process = subprocess.Popen(
            [RAY, "start", "--head", "--block", *options, *more],
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.time() + 120
        while time.time() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert self.process.poll() is None
                time.sleep(0.5)
        raise AssertionError("no head")

    def kill(self):
        """At one stroke, as a power cut does."""
        listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
        found = {self.process.pid}
        while grown := {pid for pid, parent in pairs if parent in found} - found:
            found |= grown
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait(30)


@pytest.fixture
def head(tmp_path):
    home, plugins = tmp_path / "home", Path(__file__).parent / "plugins"
    home.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    root = str(Path(__file__).parents[2])
    environment |= {"HOME": str(home), "RAY_AUTH_MODE": "token", "PYTHONPATH": os.pathsep.join([root, str(plugins)])}
    environment |= {"RAY_gcs_rpc_server_reconnect_timeout_s": "5", "RAY_USAGE_STATS_ENABLED": "0"}
    subprocess.run([RAY, "get-auth-token", "--generate"], env=environment, check=True, capture_output=True, timeout=120)
    with tempfile.TemporaryDirectory(prefix="rb-", ignore_cleanup_errors=True) as short:  # sockets want short paths
        head = Head(environment, short)
        yield head
        if head.process.poll() is None:
            head.kill()


def table(folder):
    store = ResultStore(folder)
    return store.trials()[comparable(store.schema())].sort_values("trial_id", ignore_index=True)


def test_the_same_command_goes_on_after_a_killed_head(head, tmp_path, make_spec, monkeypatch):
    sleepers = {"name": "sleeper", "sweep": {"seconds": [0.2, 0.3, 0.4, 0.5]}}
    spec = make_spec(methods=["finetune", "gradient_ascent", sleepers], plugins=["cluster_fakes"])
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))

    def start(results, *options):
        command = [sys.executable, "-m", "raybench", "run", "spec.yaml", "--results", str(tmp_path / results)]
        command += ["--store", str(tmp_path / "store"), *options]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=tmp_path, env=head.environment, **pipes)

    calm = start("calm", "--serial")
    _, err = calm.communicate(timeout=300)
    assert calm.returncode == 0, err
    head.start()
    command = ("rows", "--address", f"127.0.0.1:{head.port}")
    process = start(*command)
    deadline = time.time() + 300
    while len(list((tmp_path / "rows" / "trials").glob("*.parquet"))) < 6:
        assert time.time() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    head.kill()
    _, err = process.communicate(timeout=200)
    assert process.returncode not in (0, None), err
    before = ResultStore(tmp_path / "rows").ids()
    assert len(before) >= 6
    head.start()
    process = start(*command)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert before < ResultStore(tmp_path / "rows").ids()
    pd.testing.assert_frame_equal(table(tmp_path / "rows"), table(tmp_path / "calm"), check_exact=True)
