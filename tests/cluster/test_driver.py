"""The driver on a local Ray: killed or interrupted in the middle, the same command finishes the same rows."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from raybench.leaderboard.schema import comparable
from raybench.leaderboard.store import ResultStore


@pytest.fixture
def command(tmp_path, ray_home, make_spec):
    """Starts ``raybench run`` on a results folder; all share a store."""
    sleepers = {"name": "sleeper", "sweep": {"seconds": [0.2, 0.3]}}
    spec = make_spec(methods=["finetune", "gradient_ascent", sleepers], plugins=["cluster_fakes"])
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))

    def start(results, *options):
        arguments = ["run", "spec.yaml", "--results", str(tmp_path / results), "--store", str(tmp_path / "store")]
        return subprocess.Popen(
            [sys.executable, "-m", "raybench", *arguments, *options],
            cwd=tmp_path,
            env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def finish(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def table(folder):
    store = ResultStore(folder)
    return store.trials()[comparable(store.schema())].sort_values("trial_id", ignore_index=True)


def workers_below(pid):
    """Ray's worker processes below ``pid``; its two agents per node take a minute to notice and hold nothing."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in listed.splitlines()]
    found = {str(pid)}
    while grown := {row[0] for row in rows if row[1] in found} - found:
        found |= grown
    return {row[0] for row in rows if row[0] in found and row[2].startswith("ray::") and "Agent" not in row[2]}


def runs(pid):
    try:
        return b"ray::" in Path("/proc", pid, "cmdline").read_bytes()  # empty for the dead that nobody has buried
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_stopped_in_the_search_the_same_command_finishes(command, tmp_path, how):
    code, _, err = finish(command("serial", "--serial"))
    assert code == 0, err
    process = command("ray", "--slots", "2")
    deadline = time.time() + 200
    while len(list((tmp_path / "ray" / "trials").glob("*.parquet"))) < 7:  # three references, then searches
        assert time.time() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    workers = workers_below(process.pid)
    assert len(workers) >= 3  # two that run trials (or Tune's), the aggregator
    process.send_signal(how)
    code, _, err = finish(process)
    assert code != 0
    assert "Traceback" not in err
    deadline = time.time() + 30
    while any(map(runs, workers)):
        assert time.time() < deadline, "Ray outlives its driver"
        time.sleep(0.2)

    code, _, err = finish(command("ray", "--slots", "2"))
    assert code == 0, err
    assert "worker" not in err
    pd.testing.assert_frame_equal(table(tmp_path / "ray"), table(tmp_path / "serial"), check_exact=True)
    assert not ResultStore(tmp_path / "ray").trials(attempts=True)["trial_id"].duplicated().any()
    started = time.time()
    code, _, err = finish(command("ray", "--slots", "2"))
    assert (code, time.time() - started < 20) == (0, True), err
    assert "starting Ray" not in err
