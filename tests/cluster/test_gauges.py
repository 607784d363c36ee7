"""Ray's own metrics endpoint shows what a run did."""

from __future__ import annotations

import time
import urllib.request

import ray


def scraped(name):
    """Lines of a metric from every node's endpoint, as Prometheus would read them."""
    found = []
    for node in ray.nodes():
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            found += [line for line in answer.read().decode().splitlines() if line.startswith(f"ray_{name}")]
    return found


def test_rows_and_occupancy_reach_the_endpoint(drive, on, capped, spec):
    found = drive(
        spec(name="gauged", methods=["gradient_ascent"], search={"trials": 2, "round_size": 2}), on(capped(1))
    )
    rows = found.store.trials()
    deadline = time.time() + 90
    while True:
        lines = [line for line in scraped("raybench_") if 'experiment="gauged"' in line]
        values = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines}
        counted = sum(value for name, value in values.items() if name.startswith("ray_raybench_rows"))
        if counted >= len(rows) or time.time() > deadline:
            break
        time.sleep(1)
    assert counted == len(rows)
    trials = {name: value for name, value in values.items() if name.startswith("ray_raybench_trials")}
    searched = [value for name, value in trials.items() if 'phase="search"' in name and 'status="ok"' in name]
    assert searched == [2.0]
    assert not any(trial_id in line for trial_id in rows["trial_id"] for line in lines)
    for name in ("running", "waiting", "slots", "occupancy"):
        assert any(line.startswith(f"ray_raybench_{name}{{") for line in lines)
