"""Collect training histories of many small networks across a Ray cluster: raw material of rewinding predictors.

    python jobs/collect_histories.py jobs/histories.yaml --data DIR --results DIR [--slots 2]
    ray job submit --working-dir . -- python jobs/collect_histories.py jobs/histories.yaml \
        --address auto --data /abs --results /abs/shared

What is there already is not trained again; the same command goes on after any interruption.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from raybench.cluster.histories import collect_histories
from raybench.cluster.session import Session
from raybench.errors import UserError
from raybench.histories import plan_histories
from raybench.places import data_root, results_folder
from raybench.spec_file import read_spec


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 2 bad input (one line)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", help="a YAML file such as jobs/histories.yaml")
    parser.add_argument("--results", help="folder for the histories, shared by all nodes")
    parser.add_argument("--data", help="where datasets are (or RAYBENCH_DATA)")
    parser.add_argument("--download", action="store_true", help="fetch datasets that are not there")
    parser.add_argument("--address", help="a running cluster: auto or host:port; default: a local Ray")
    parser.add_argument("--slots", type=int, help="networks at once (default: one per core)")
    given = parser.parse_args(argv)
    try:
        plan = plan_histories(read_spec(given.spec))
        folder = str(results_folder(plan.name, given.results))
        session = Session.connect(given.address, given.slots) if given.address else Session.start(given.slots)
    except UserError as error:
        print(f"collect_histories: {error}", file=sys.stderr)
        return 2
    started, done = time.perf_counter(), 0

    def finished(run: object, key: str) -> None:
        nonlocal done
        done += 1
        print(f"{done} trained after {time.perf_counter() - started:.0f} s: {key}", flush=True)

    try:
        keys = collect_histories(plan.all, folder, session, data_root(given.data), given.download, finished)
    except UserError as error:
        print(f"collect_histories: {error}", file=sys.stderr)
        return 2
    finally:
        session.close()
    print(f"{len(keys)} histories in {folder}, {done} of them new ({time.perf_counter() - started:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
