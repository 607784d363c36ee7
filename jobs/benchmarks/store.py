"""A results folder with a million rows: how fast rows become durable, and what reading, compacting and reading while it
is compacted take.

    python jobs/benchmarks/store.py [--rows 1000000] [--problems 10] [--repeats 3]

The rows are those of ``results/baselines_mnist`` (113 columns), repeated over more problems and many more settings:
ids, settings and numbers of search rows are drawn anew, so they do not compress away. Final and reference rows are
repeated as they are. Prints a table, and adds a row for each number to ``results/performance/store.parquet``; beside
wall seconds it has process seconds, which say what a machine of one's own would take.
"""

from __future__ import annotations

import argparse
import datetime
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from rows import add_rows

from raybench.leaderboard.query import write_leaderboard
from raybench.leaderboard.schema import SEARCHES_SCHEMA
from raybench.leaderboard.store import ResultStore
from raybench.places import git_commit
from raybench.seeding import to_json

ROOT = Path(__file__).parents[2]
OUT = ROOT / "results" / "performance" / "store.parquet"
SOURCE = ROOT / "results" / "baselines_mnist"
PARTS = 20  # before compaction
READERS = 2
BATCH = 100
FLOORS = {"load_leaderboard of the rows": (1.0, False), "durable rows in batches of 100": (2000.0, True)}
PROBE = """
import sys, time
from raybench.leaderboard.query import load_leaderboard
started, cpu = time.perf_counter(), time.process_time()
lines = len(load_leaderboard(sys.argv[1]))
print(time.perf_counter() - started, time.process_time() - cpu, lines)
"""


def grow(source: pa.Table, rows: int, problems: int) -> pa.Table:
    """``source`` repeated: final and reference rows once per problem, search rows as often as it takes."""
    rng = np.random.default_rng(0)
    fixed = source.filter(pc.is_in(source["phase"], value_set=pa.array(["final", "reference"])))
    search = source.filter(pc.equal(source["phase"], "search"))
    width = problems // 2  # the source has two problems: two scenarios
    copies = [fixed] * width
    taken = rng.permutation(np.arange(rows - width * fixed.num_rows) % search.num_rows)
    tables = [*copies, search.take(pa.array(np.sort(taken)))]
    model = [f"lenet5(width={k})" for k in range(width) for _ in range(fixed.num_rows)]
    model += [f"lenet5(width={k})" for k in (np.arange(len(taken)) % width).tolist()]
    table = pa.concat_tables(tables)
    number = np.arange(table.num_rows)
    table = _set(table, "model", pa.array(model))
    table = _set(table, "trial_id", pa.array([f"{i * 0x9E3779B97F4A7C15 % 2**80:020x}" for i in number.tolist()]))
    texts = pa.array(number).cast(pa.string())
    for name in ("spec", "hparams"):
        inner = pc.utf8_slice_codeunits(table[name], 1)
        drawn = pc.binary_join_element_wise('{"draw":', texts, ",", inner, "")
        table = _set(table, name, pc.if_else(pc.equal(table["phase"], "search"), drawn, table[name]))
    noise = pa.array(np.where(number < table.num_rows - len(taken), 1.0, rng.uniform(0.9, 1.1, table.num_rows)))
    for field in source.schema:
        if pa.types.is_floating(field.type):
            table = _set(table, field.name, pc.multiply(table[field.name], noise))
    return table.cast(source.schema)


def _set(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.schema.names.index(name), name, values)


def searches_of(trials: pa.Table) -> pa.Table:
    """A search record for every search row, four to a round."""
    search = trials.filter(pc.equal(trials["phase"], "search"))
    keys = search.select(["dataset", "model", "scenario", "method", "trial_id", "hparams"]).to_pandas()
    groups = keys.groupby(["dataset", "model", "scenario", "method"])
    lines = {k: to_json(dict(zip(("dataset", "model", "scenario", "method"), k, strict=True))) for k in groups.groups}
    index = groups.cumcount()
    columns = {
        "search_id": groups.ngroup().map("{:020x}".format).tolist(),
        "line": [lines[k] for k in zip(*(keys[c] for c in ("dataset", "model", "scenario", "method")), strict=True)],
        "round": index // 4,
        "index": index % 4,
        "train_seed": np.zeros(len(keys), dtype=np.int64),
        "trial_id": keys["trial_id"].tolist(),
        "hparams": keys["hparams"].tolist(),
    }
    return pa.table({name: pa.array(values) for name, values in columns.items()}, schema=SEARCHES_SCHEMA)


def timed(run: Callable[[], Any]) -> tuple[float, float]:
    """Wall and process seconds."""
    started, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - started, time.process_time() - cpu


def loaded(folder: str) -> tuple[float, float, int]:
    """Wall and process seconds of ``load_leaderboard`` in a process of its own, imports not counted, and its lines."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, folder],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    seconds, cpu, lines = done.stdout.split()
    return float(seconds), float(cpu), int(lines)


def while_compacting(folder: str, rows: int) -> tuple[float, float, int]:
    """Wall and process seconds (the readers' too) of a compaction beside readers that take every row's key, and how
    many reads they finished. A reader that finds a row missing or twice ends the benchmark."""
    stop, wrong, reads = threading.Event(), [], [0] * READERS

    def read(slot: int) -> None:
        while not stop.is_set():
            found = ResultStore(folder).table(["trial_id", "train_seed"], attempts=True)
            if found.num_rows != rows or len(pc.unique(found["trial_id"])) != rows:
                wrong.append(found.num_rows)
            reads[slot] += 1

    readers = [threading.Thread(target=read, args=(slot,)) for slot in range(READERS)]
    for reader in readers:
        reader.start()
    seconds, cpu = timed(lambda: ResultStore(folder).compact())
    stop.set()
    for reader in readers:
        reader.join()
    if wrong:
        raise RuntimeError(f"readers must find {rows} rows, each once, found {wrong}")
    return seconds, cpu, sum(reads)


def appended(rows: list[dict[str, Any]], metrics: Any) -> Iterator[tuple[float, float]]:
    """Wall and process seconds of making rows durable through the aggregator's store, in batches and one by one."""
    from raybench.cluster.aggregator import Aggregator

    for size, given in ((BATCH, rows), (1, rows[: len(rows) // 20])):
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
            aggregator = Aggregator(folder, metrics)
            batches = [given[i : i + size] for i in range(0, len(given), size)]
            yield timed(lambda b=batches, a=aggregator: [a.append(batch) for batch in b])


def measure(rows: int, problems: int, repeats: int) -> Iterator[tuple[str, float, str, float, str]]:
    """(what, number, unit, process seconds, of what), in the order measured."""
    source = ResultStore(SOURCE)
    metrics, real = source.metrics_on_disk(), source.table()
    batch = grow(real, 20 * BATCH * 5, 2).to_pylist()
    for _ in range(repeats):
        (many, many_cpu), (single, single_cpu) = appended(batch, metrics)
        n, few = len(batch), len(batch) // 20
        yield "durable rows in batches of 100", n / many, "rows/s", many_cpu, f"{n} rows"
        yield "durable rows one by one", few / single, "rows/s", single_cpu, f"{few} rows"
    del batch
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        store = ResultStore.open_for_writing(folder, metrics)
        table = grow(real, rows, problems)
        step = -(-rows // PARTS)
        for start in range(0, rows, step):
            store._write("trials", table.slice(start, step).replace_schema_metadata(real.schema.metadata))
        records = searches_of(table)
        for start in range(0, records.num_rows, step):
            store._write("searches", records.slice(start, step))
        del table, records
        seconds, cpu, lines = loaded(folder)
        yield "load_leaderboard of uncompacted rows", seconds, "s", cpu, f"{lines} lines of {PARTS} parts"
        seconds, cpu, reads = while_compacting(folder, rows)
        yield "compaction while read", seconds, "s", cpu, f"{reads} reads of all keys meanwhile"
        size = sum(path.stat().st_size for path in (Path(folder) / "trials").glob("*.parquet"))
        yield "compacted file", size / 1e6, "MB", 0.0, f"{size / rows:.0f} bytes a row"
        for _ in range(repeats):
            seconds, cpu, lines = loaded(folder)
            yield "load_leaderboard of the rows", seconds, "s", cpu, f"{lines} lines"
        seconds, cpu = timed(lambda: ResultStore.open_for_writing(folder, metrics))
        yield "opening for writing", seconds, "s", cpu, "index of ids"
        write_leaderboard(folder)
        for _ in range(repeats):
            seconds, cpu, lines = loaded(folder)
            yield "load_leaderboard of its own file", seconds, "s", cpu, f"{lines} lines"
        ids = ResultStore(folder).table(["trial_id"]).num_rows
        if ids != rows:
            raise RuntimeError(f"the compacted file must have {rows} rows, got {ids}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    yield "peak memory", peak, "MB", 0.0, "making the rows, compacting, two readers"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--problems", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    rows = []
    for what, value, unit, cpu, note in measure(given.rows, given.problems, given.repeats):
        floor, more = FLOORS.get(what, (None, unit == "rows/s"))
        rows.append(
            {
                "what": what, "value": value, "unit": unit, "process_s": cpu, "floor": floor,
                "more_is_better": more, "note": note, "rows": given.rows, "problems": given.problems,
                "cores": os.cpu_count(),
                "machine_load": os.getloadavg()[0], "git_commit": git_commit(),
                "measured_at": datetime.datetime.now(datetime.UTC),
            }
        )  # fmt: skip
        add_rows(given.out, [rows[-1]])
        load = rows[-1]["machine_load"]
        print(f"{what}: {value:.4g} {unit} ({cpu:.3g} process s, {note}, load {load:.1f})", flush=True)
    found = pd.DataFrame(rows)
    best = [
        group.sort_values("value", ascending=not group["more_is_better"].iloc[0]).iloc[0]
        for _, group in found.groupby("what", sort=False)
    ]
    print("\nbest of each")
    shown = ["what", "floor", "value", "unit", "process_s", "note", "machine_load"]
    print(pd.DataFrame(best)[shown].to_string(index=False))


if __name__ == "__main__":
    main()
