"""A job on four hosts, disturbed in every way at once, leaves the rows of an undisturbed one.

Needs root, iproute2 and a checkout outside of /tmp, of which every host has its own:
``python -m pytest -m rig -s tests/cluster/test_disturbed.py``. It prints a table. The number of trials is
RAYBENCH_RIG_TRIALS (default 300, of 1 to 3 s; half of them searched).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import pytest

from raybench.leaderboard.query import load_trials
from raybench.leaderboard.schema import comparable
from raybench.leaderboard.store import ResultStore
from tests.cluster.test_rig import Rig, finish, pytestmark  # noqa: F401  # the same marks

TRIALS = int(os.environ.get("RAYBENCH_RIG_TRIALS", "300"))
WORKERS = 3
DEAD_S = 90.0  # Ray calls a silent node dead after about 65 s, later on a loaded machine
PARTITION_S = 80.0
PATIENCE_S = 3600.0
HOST = "n['NodeManagerHostname'].removeprefix('node')"
AGGREGATOR = (
    "from ray.util.state import list_actors; "
    "a = list_actors(filters=[('class_name', '=', 'Aggregator'), ('state', '=', 'ALIVE')])[0]; "
    f"print(*({HOST} for n in ray.nodes() if n['NodeID'] == a.node_id), a.pid)"
)


@pytest.fixture(scope="module")
def rig():
    folder = Path(tempfile.mkdtemp(prefix="rbrig-"))
    rig = Rig(folder)
    rig("up", 1 + WORKERS, "--venv", sys.prefix, "--cpus", 2, "--auth", "token", timeout=600)
    deadline = time.time() + 300  # the dashboard, which takes jobs, is there later than the nodes
    while rig("exec", "client", "ray", "job", "list", check=False).returncode:
        assert time.time() < deadline
        time.sleep(2)
    yield rig
    rig("down", check=False)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def many(make_spec):
    """Searches through Tune and finals through the pool, equally many."""
    problem = make_spec()["problems"][0]
    problem["scenarios"] = [{"class": {"classes": [c]}} for c in range(5)]
    finals = TRIALS // 10
    sleepers = {"name": "sleeper", "sweep": {"seconds": [1.0 + 2.0 * i / finals for i in range(finals)]}}
    search = {"trials": TRIALS // 10, "round_size": 5}
    return make_spec(problems=[problem], methods=["napper", sleepers], search=search, plugins=["cluster_fakes"])


class Disturber:
    """Does the worst to the hosts as rows come in, and remembers when."""

    def __init__(self, rig, results, process):
        self.rig, self.results, self.process = rig, results, process
        self.hits = []  # what, node, from, until

    def rows(self):
        return ResultStore(self.results).ids() if (self.results / "trials").exists() else set()

    def wait_for(self, share):
        deadline = time.time() + PATIENCE_S
        while len(self.rows()) < share * TRIALS:
            assert time.time() < deadline
            assert self.process.poll() is None, self.process.communicate()[0]
            time.sleep(0.5)

    def hit(self, what, node, *commands):
        began = time.time()
        for command in commands:
            self.rig(*command, timeout=600)
        self.hits.append((what, node, began, time.time()))

    def ask(self, code):
        """What the cluster itself answers, on the head: ``print`` in ``code``."""
        start = "import ray; ray.init(logging_level='ERROR', log_to_driver=False); "
        return self.rig("exec", 0, "python", "-W", "ignore", "-c", start + code).stdout.strip().splitlines()[-1]

    def drain(self, node):
        """As a cloud does before it takes a spot machine away; then it comes back."""
        node_id = self.ask(f"print(next(n['NodeID'] for n in ray.nodes() if n['Alive'] and {HOST} == '{node}'))")
        why = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "test"]
        drain = ["exec", 0, "ray", "drain-node", "--node-id", node_id, *why, "--deadline-remaining-seconds", 15]
        began = time.time()
        self.rig(*drain)
        time.sleep(15)
        self.rig("kill", node)
        self.rig("add", node, timeout=600)
        self.hits.append(("drained, back", node, began, time.time()))

    def all(self):
        self.wait_for(0.15)
        node, pid = self.ask(AGGREGATOR).split()
        self.hit("aggregator killed", int(node), ("exec", node, "kill", "-9", pid))
        self.wait_for(0.25)
        self.hit("power cut", 3, ("kill", 3))
        self.wait_for(0.40)
        self.drain(2)
        self.wait_for(0.60)
        began = time.time()
        self.rig("cut", 1)
        time.sleep(PARTITION_S)
        self.rig("heal", 1)
        self.hits.append(("cut off, healed", 1, began, time.time()))


def lost_tries(results):
    """What the driver's log says of workers that died with a trial in hand, begun or still on its way to them:
    trial id, when it was noticed."""
    lines = [json.loads(line) for path in (results / "logs").glob("*.jsonl") for line in path.read_text().splitlines()]
    lost = [line for line in lines if line["event"] == "worker lost"]
    return [(line["trial_id"], pd.Timestamp(line["time"]).timestamp()) for line in lost]


def shared(results):
    frame = load_trials(results)
    assert frame["trial_id"].is_unique
    return frame[comparable(ResultStore(results).schema())].sort_values("trial_id", ignore_index=True)


@pytest.mark.timeout(int(3 * PATIENCE_S))
def test_everything_at_once(rig, many):
    store = rig.shared / "store"
    calm, results = rig.shared / "calm", rig.shared / "disturbed"
    started = time.time()
    process = rig.submit(many, "--results", calm, "--store", store)
    out = finish(process, PATIENCE_S)
    assert process.returncode == 0, out
    calm_s = time.time() - started
    started = time.time()
    process = rig.submit(many, "--results", results, "--store", store)
    disturber = Disturber(rig, results, process)
    disturber.all()
    out = finish(process, PATIENCE_S)
    assert process.returncode == 0, out
    rows = ResultStore(results).trials(attempts=True)
    lost = lost_tries(results)
    table = pd.DataFrame(
        [
            ("trial ids", len(load_trials(calm)), len(load_trials(results))),
            ("rows, attempts and all", len(ResultStore(calm).trials(attempts=True)), len(rows)),
            ("rows of a later attempt", 0, int(rows["attempt"].gt(0).sum())),
            ("trials whose worker was lost", len(lost_tries(calm)), len(lost)),
            ("not ok", int((load_trials(calm)["status"] != "ok").sum()), int((rows["status"] != "ok").sum())),
            ("seconds", round(calm_s), round(time.time() - started)),
        ],
        columns=["", "undisturbed", "disturbed"],
    )
    print(f"\n{table.to_string(index=False)}")
    for what, node, began, until in disturber.hits:
        print(f"{what}: node{node}, {until - began:.0f} s")
    pd.testing.assert_frame_equal(shared(results), shared(calm), check_exact=True)
    again = set(rows.loc[rows["attempt"] > 0, "trial_id"])
    assert again <= {trial_id for trial_id, _ in lost}
    # Ray notices a silent host after DEAD_S; whatever else was running went on undisturbed
    hit = [(began - 1, until + DEAD_S) for _, _, began, until in disturber.hits]
    late = [(trial_id, when) for trial_id, when in lost if not any(a <= when <= b for a, b in hit)]
    assert not late, (late, disturber.hits)
