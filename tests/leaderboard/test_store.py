from __future__ import annotations

import multiprocessing
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raybench.errors import UserError
from raybench.leaderboard import schema as s
from raybench.leaderboard.store import ResultStore


def _parts(directory: Path, kind: str = "trials") -> list[Path]:
    return sorted((directory / kind).glob("*.parquet"))


@pytest.fixture
def store(tmp_path, metrics):
    return ResultStore.open_for_writing(tmp_path / "run", metrics)


def test_an_empty_folder_reads_as_no_rows(tmp_path, metrics):
    empty = ResultStore(tmp_path / "nothing", metrics)
    assert list(empty.trials().columns) == s.trial_schema(metrics).names
    assert len(empty.trials()) == len(empty.searches()) == len(empty.series()) == 0
    assert empty.ids() == set()
    assert not (tmp_path / "nothing").exists()


def test_rows_come_back_as_they_were_written(store, make_row, metrics):
    rows = [make_row(train_seed=i, distance=0.1 * i, tuned_here=i == 0, peak_memory=2**40) for i in range(3)]
    store.append(rows)
    frame = ResultStore(store.folder.path).trials()
    assert frame["trial_id"].tolist() == [row["trial_id"] for row in rows]
    assert frame["distance"].tolist() == [row["distance"] for row in rows]
    assert frame["train_seed"].dtype == "int64"
    assert frame["peak_memory"].tolist() == [2**40] * 3
    assert frame["tuned_here"].tolist() == [True, False, False]
    assert ResultStore(store.folder.path).metrics_on_disk() == metrics
    # Plain pandas reads the folder too, and the part says what it is.
    assert len(pd.read_parquet(store.folder.path / "trials")) == 3
    assert pq.read_schema(_parts(store.folder.path)[0]).metadata[b"raybench.protocol"] == b"1"


def test_one_bad_row_keeps_the_whole_batch_out(store, make_row):
    with pytest.raises(ValueError, match="lacks: 'distnace'"):
        store.append([make_row(), make_row(train_seed=1, distnace=1.0)])
    assert store.ids() == set()


def test_repeats_are_dropped_and_the_last_attempt_is_shown(store, make_row):
    store.append([make_row(distance=0.1), make_row(distance=0.9)])
    store.append([make_row(distance=0.8)])
    assert len(_parts(store.folder.path)) == 1
    again = ResultStore.open_for_writing(store.folder.path, store.metrics)  # a restart indexes what is there
    again.append([make_row(distance=0.7), make_row(attempt=1, distance=0.5)])
    assert again.trials()["distance"].tolist() == [0.5]
    assert again.trials(attempts=True)["distance"].tolist() == [0.1, 0.5]


def test_columns_of_a_read(store, make_row):
    store.append([make_row(), make_row(attempt=1)])
    assert list(store.trials(columns=["method"]).columns) == ["method"]
    assert len(store.trials(columns=["method"])) == 1
    with pytest.raises(UserError, match="did you mean method"):
        store.trials(columns=["methd"])


def test_a_crash_in_the_middle_of_writing_is_invisible(store, make_row, monkeypatch):
    store.append([make_row()])
    data = _parts(store.folder.path)[0].read_bytes()
    staged = store.folder.path / ".staging" / "dead.part"
    staged.write_bytes(data[: len(data) // 2])
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match=r"run must take writes, got No space left on device; make room there"):
        store.append([make_row(train_seed=1)])
    monkeypatch.undo()
    assert len(store.trials()) == 1
    store.append([make_row(train_seed=1)])  # the row that was not acknowledged is not taken for seen
    assert len(store.trials()) == 2
    os.utime(staged, (0, 0))
    ResultStore.open_for_writing(store.folder.path, store.metrics)
    assert not staged.exists()


def test_a_killed_writer_loses_no_acknowledged_row(tmp_path):
    code = """
import sys
from raybench.leaderboard.store import ResultStore
store = ResultStore.open_for_writing(sys.argv[1])
base = dict(attempt=0, experiment="e", protocol="1", dataset="d", model="m", scenario="s", method="x", method_version=1,
            variant="", phase="final", train_seed=0, unlearn_seed=0, hparams="{}", spec="{}", status="ok")
for i in range(100000):
    store.append([base | {"trial_id": str(i)}])
    print(i, flush=True)
"""
    writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    for line in writer.stdout:
        if int(line) >= 25:
            writer.kill()
            break
    told = int(([line, *writer.stdout.read().split()])[-1])
    writer.wait()
    writer.stdout.close()
    ids = ResultStore(tmp_path).ids()
    assert {str(i) for i in range(told + 1)} <= ids
    assert len(ids) <= told + 2  # at most the one that was in flight


@pytest.mark.parametrize("harm", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"x" * 100])
def test_a_damaged_part_is_named_with_the_way_out(store, make_row, harm):
    store.append([make_row()])
    part = _parts(store.folder.path)[0]
    part.write_bytes(harm(part.read_bytes()))
    with pytest.raises(UserError) as caught:
        store.trials()
    message = str(caught.value)
    assert "\n" not in message
    assert f"{part} is damaged" in message
    assert "move it out of the folder and run the same command again" in message
    part.rename(store.folder.path / part.name)
    assert len(ResultStore(store.folder.path).trials()) == 0


def test_no_flipped_bit_is_read_as_something_else(store, make_row):
    """Nor ends in anything but a line: Parquet alone would not notice bits of its footer."""
    store.append([make_row(train_seed=i, distance=i / 7) for i in range(3)])
    part = _parts(store.folder.path)[0]
    data, draw = part.read_bytes(), random.Random(0)
    for _ in range(200):
        harmed = bytearray(data)
        harmed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        part.write_bytes(bytes(harmed))
        with pytest.raises(UserError, match="is damaged"):
            ResultStore(store.folder.path).trials()
    part.rename(part.with_name("part-1-0.parquet"))  # what earlier versions wrote: names without a digest are read
    part.with_name("part-1-0.parquet").write_bytes(data)
    assert len(ResultStore(store.folder.path).trials()) == 3


def test_a_newer_part_is_refused_politely(store, make_row):
    store.append([make_row()])
    part = _parts(store.folder.path)[0]
    table = pq.read_table(part)
    metadata = {**table.schema.metadata, b"raybench.schema_version": b"7"}
    pq.write_table(table.replace_schema_metadata(metadata), part.with_name("part-9-x.parquet"))
    with pytest.raises(UserError, match=r"schema version 7, this raybench reads up to 1; upgrade raybench"):
        store.trials()


def test_parts_of_different_metrics_are_unified_by_name(store, make_row):
    store.append([make_row(distance=0.5)])
    wider = ResultStore.open_for_writing(store.folder.path, [s.MetricInfo("auc"), s.MetricInfo("distance", 2)])
    wider.append([make_row(train_seed=1, auc=0.75)])
    for _ in range(2):
        frame = ResultStore(store.folder.path).trials()
        assert frame["auc"].isna().tolist() == [True, False]
        assert frame["distance"].isna().tolist() == [False, True]
        found = ResultStore(store.folder.path).metrics_on_disk()
        assert {m.name: m.version for m in found} == {"distance": 2, "forget_accuracy": 2, "retain_loss": 1, "auc": 1}
        wider.compact()


def test_files_that_are_not_parts_are_left_alone(store, make_row):
    store.append([make_row()])
    for name in (".DS_Store", "_temporary.parquet", "notes.txt"):
        (store.folder.path / "trials" / name).write_text("x")
    assert len(store.trials()) == 1


def test_compaction_keeps_rows_and_then_changes_no_byte(store, make_row):
    for i in range(5):
        store.append([make_row(train_seed=i)])
    store.append([make_row(train_seed=3, attempt=1)])
    before = store.trials(attempts=True)
    store.compact()
    (part,) = _parts(store.folder.path)
    pd.testing.assert_frame_equal(store.trials(attempts=True), before)
    content, stamp = part.read_bytes(), part.stat().st_mtime_ns
    store.compact()
    assert _parts(store.folder.path) == [part]
    assert (part.read_bytes(), part.stat().st_mtime_ns) == (content, stamp)


def test_a_compaction_that_died_before_deleting_shows_each_row_once(store, make_row, monkeypatch):
    for i in range(4):
        store.append([make_row(train_seed=i)])
    before = store.trials(attempts=True)
    monkeypatch.setattr(type(store.folder), "delete", lambda *_: None)
    store.compact()
    monkeypatch.undo()
    assert len(_parts(store.folder.path)) == 5
    pd.testing.assert_frame_equal(store.trials(attempts=True), before)
    store.compact()
    assert len(_parts(store.folder.path)) == 1
    pd.testing.assert_frame_equal(store.trials(attempts=True), before)


def test_a_listing_torn_by_a_compaction_is_taken_again(store, make_row, monkeypatch):
    for i in range(3):
        store.append([make_row(train_seed=i)])
    names, listing = type(store.folder).names, iter([[]])
    # A folder is listed in pieces: one that misses the new file and all old ones is possible.
    monkeypatch.setattr(type(store.folder), "names", lambda self, sub: next(listing, names(self, sub)))
    assert len(store.trials()) == 3


def test_what_others_add_during_a_compaction_stays_later(store, make_row, monkeypatch):
    for i in range(2):
        store.append([make_row(train_seed=i, distance=0.1)])
    other = ResultStore(store.folder.path, store.metrics)
    other._seen = set()  # as if its index had been read before the first row was there
    replace = ResultStore._replace

    def meanwhile(self, *arguments):
        other.append([make_row(train_seed=0, distance=0.9)])
        replace(self, *arguments)

    monkeypatch.setattr(ResultStore, "_replace", meanwhile)
    store.compact()
    assert len(_parts(store.folder.path)) == 2
    assert sorted(store.trials()["distance"]) == [0.1, 0.1]  # of equal rows the first written one stands


def test_a_part_is_on_the_disk_before_it_is_seen(store, make_row, monkeypatch):
    done: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda handle: (done.append(os.readlink(f"/proc/self/fd/{handle}")), fsync(handle))
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("replace"), replace(a, b)))
    store.append([make_row()])
    *created, staged, moved, folder = done
    assert Path(staged).parent == store.folder.path / ".staging"
    assert moved == "replace"
    assert folder == str(store.folder.path / "trials")
    assert created == [str(store.folder.path)]  # the entry of the new folder trials/


def test_readers_are_exact_while_compactions_run(tmp_path, make_row, metrics):
    store = ResultStore.open_for_writing(tmp_path, metrics)
    for i in range(40):
        store.append([make_row(train_seed=i)])
    stop, wrong, reads = threading.Event(), [], [0] * 20

    def read(slot: int) -> None:
        try:
            while not stop.is_set():
                # Written rows only grow: at least the 40, each once, whatever the compaction is doing.
                frame = ResultStore(tmp_path).trials(attempts=True, columns=["trial_id", "train_seed"])
                if not frame["trial_id"].is_unique or not set(range(40)) <= set(frame["train_seed"]):
                    wrong.append(sorted(frame["train_seed"]))
                reads[slot] += 1
        except Exception as error:  # kept and judged below: a thread's exception would be lost
            wrong.append(repr(error))

    readers = [threading.Thread(target=read, args=(slot,)) for slot in range(20)]
    for reader in readers:
        reader.start()
    end, seed, compactions = time.monotonic() + 4, 40, 0
    while time.monotonic() < end or min(reads) < 1:
        for _ in range(3):
            store.append([make_row(train_seed=seed)])
            seed += 1
        store.compact()
        compactions += 1
        if time.monotonic() > end + 60:
            break
    stop.set()
    for reader in readers:
        reader.join()
    assert wrong == []
    assert min(reads) >= 1
    assert compactions >= 2
    assert sorted(store.trials()["train_seed"]) == list(range(seed))


def _append_many(directory: str, start: int, row: dict) -> None:
    store = ResultStore.open_for_writing(directory)
    for i in range(start, start + 30):
        store.append([row | {"trial_id": f"t{i}", "train_seed": i}])


def test_two_processes_append_at_the_same_time(tmp_path, make_row):
    context = multiprocessing.get_context("spawn")
    # They overlap in 20 ids, which both write: a reader sees each once.
    writers = [context.Process(target=_append_many, args=(str(tmp_path), start, make_row())) for start in (0, 10)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    store = ResultStore(tmp_path)
    assert sorted(store.trials(attempts=True)["train_seed"]) == list(range(40))
    assert store.ids() == {f"t{i}" for i in range(40)}


def test_an_unwritable_folder_is_found_at_the_start(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "run", Path("/proc/raybench-run")):
        if place.parent.exists():
            with pytest.raises(UserError, match=r"results folder must be writable, got .*; give another one"):
                ResultStore.open_for_writing(place)
    # A read-only mount refuses the write itself, which access bits do not show (and root ignores them).
    refused = OSError(30, "Read-only file system")
    monkeypatch.setattr(Path, "open", lambda *_, **__: (_ for _ in ()).throw(refused))
    with pytest.raises(UserError, match="Read-only file system"):
        ResultStore.open_for_writing(tmp_path / "run")


def _record(round_: int, index: int, **changes: object) -> dict:
    line = '{"dataset":"mnist","method":"finetune","model":"lenet5","scenario":"class(0)"}'
    record = {"search_id": "s1", "line": line, "round": round_, "index": index, "train_seed": 0, "hparams": "{}"}
    return record | {"trial_id": f"t{round_}{index}"} | changes


def test_searches_are_kept_once_and_dropped_for_a_retry(store):
    store.append_searches([_record(0, 0), _record(0, 1)])
    store.append_searches([_record(0, 1, trial_id="other"), _record(1, 0)])
    store.append_searches([_record(2, 0), _record(0, 0, search_id="s2")])
    assert store.searches()["trial_id"].tolist() == ["t00", "t01", "t10", "t20", "t00"]
    assert store.drop_searches(lambda r: r["search_id"] == "s1" and r["round"] >= 1) == 2
    assert ResultStore(store.folder.path).searches()["trial_id"].tolist() == ["t00", "t01", "t00"]
    names = _parts(store.folder.path, "searches")
    assert store.drop_searches(lambda r: r["round"] >= 5) == 0
    assert _parts(store.folder.path, "searches") == names
    store.append_searches([_record(1, 0, trial_id="new")])
    assert "new" in set(store.searches()["trial_id"])
    assert store.drop_searches(lambda r: True) == 4
    assert len(store.searches()) == 0


def test_a_kill_while_searches_are_dropped_leaves_a_prefix_of_the_rounds(store, monkeypatch):
    for round_ in range(4):
        store.append_searches([_record(round_, 0)])
    delete, budget = type(store.folder).delete, iter([None, None])

    def dying(self, name):
        next(budget)  # StopIteration stands for the kill after two deletions
        delete(self, name)

    monkeypatch.setattr(type(store.folder), "delete", dying)
    with pytest.raises(StopIteration):
        store.drop_searches(lambda record: record["round"] >= 1)
    monkeypatch.undo()
    assert store.searches()["round"].tolist() == [0, 1]
    assert store.drop_searches(lambda record: record["round"] >= 1) == 1
    assert store.searches()["round"].tolist() == [0]


def test_series_of_a_later_attempt_replace_the_earlier(store):
    points = [{"trial_id": "t", "name": "curve", "step": i, "x": float(i), "y": 0.0} for i in range(3)]
    store.append_series(points)
    store.append_series([points[1] | {"y": 1.0}, points[0] | {"trial_id": "u", "y": float("nan")}])
    store.compact()
    assert store.series("t")["y"].tolist() == [0.0, 1.0, 0.0]
    assert store.series()["trial_id"].tolist() == ["t", "t", "t", "u"]
    assert pq.read_table(_parts(store.folder.path, "series")[0])["y"].null_count == 1


def test_an_object_store_works_the_same(make_row, metrics):
    url = "memory://bucket/run"
    store = ResultStore.open_for_writing(url, metrics)
    for i in range(3):
        store.append([make_row(train_seed=i)])
    assert ResultStore(url).trials()["train_seed"].tolist() == [0, 1, 2]
    store.compact()
    assert len(store.folder.names("trials")) == 1
    assert ResultStore(url).trials()["train_seed"].tolist() == [0, 1, 2]
    with pytest.raises(UserError, match="must be s3://bucket/prefix or gs://bucket/prefix, got nosuch://bucket/run"):
        ResultStore("nosuch://bucket/run")


def test_parts_that_disagree_about_a_type_are_explained(store, make_row):
    store.append([make_row()])
    part = _parts(store.folder.path)[0]
    table = pq.read_table(part)
    at = table.schema.get_field_index("distance")
    text = table.set_column(at, pa.field("distance", pa.string()), pa.array(["x"]))
    pq.write_table(text, part.with_name("part-9-x.parquet"))
    with pytest.raises(UserError, match="disagree about a column's type"):
        store.trials()
