"""A compacted folder: few columns are read alone, every bit of them is checked, and it says what the rows say."""

from __future__ import annotations

import io
import random
import threading

import pandas as pd
import pytest

from raybench.errors import UserError
from raybench.leaderboard import parts
from raybench.leaderboard.query import load_leaderboard
from raybench.leaderboard.store import ResultStore


@pytest.fixture
def large(monkeypatch):
    """Every compaction leaves a large part, of small groups."""
    monkeypatch.setattr(parts, "LARGE", 0)
    monkeypatch.setattr(parts, "GROUP", 4)


@pytest.fixture
def store(tmp_path, metrics):
    return ResultStore.open_for_writing(tmp_path / "run", metrics)


def _fill(store, make_row, count=20):
    for i in range(count):
        phase = "search" if i < count - 6 else "final"
        store.append([make_row(trial_id=f"t{i}", train_seed=i, phase=phase, distance=i / 7)])


class Counting(io.BytesIO):
    """A file that counts what is read of it."""

    taken = 0

    def readinto(self, buffer):
        got = super().readinto(buffer)
        self.taken += got
        return got


def test_rows_are_the_same_before_and_after(large, store, make_row):
    _fill(store, make_row)
    before = store.trials()
    store.compact()
    (name,) = store.folder.names("trials")
    assert "-footer-" in name
    pd.testing.assert_frame_equal(ResultStore(store.folder.path).trials(), before)
    some = store.trials(columns=["distance", "train_seed"], phases=["final"])
    wanted = before[before["phase"] == "final"][["distance", "train_seed"]].reset_index(drop=True)
    pd.testing.assert_frame_equal(some, wanted)
    assert store.trials(phases=["oracle"]).empty
    pd.testing.assert_frame_equal(pd.read_parquet(store.folder.path / name), before)  # anybody's reader


def test_only_what_is_asked_for_is_read(large, store, make_row):
    _fill(store, make_row)
    store.compact()
    (name,) = store.folder.names("trials")
    data = (store.folder.path / name).read_bytes()
    taken = []
    for read in (
        lambda part: part.schema,
        lambda part: part.read(["distance"]),
        lambda part: part.where("phase", ["final"], ["distance"]),
        lambda part: part.read(),
    ):
        file = Counting(data)
        read(parts.Part(name, file, alone=True))
        taken.append(file.taken)
    footer = int.from_bytes(data[-8:-4], "little") + 16
    assert taken[0] <= footer
    assert taken[0] < taken[1] < taken[2] < taken[3]  # the phases too, but only some groups of the distance
    assert taken[2] < footer + (taken[3] - footer) / 5


def test_no_flipped_bit_of_a_large_part_is_read_as_something_else(large, store, make_row):
    _fill(store, make_row, 9)
    store.compact()
    (name,) = store.folder.names("trials")
    part = store.folder.path / name
    data, draw = part.read_bytes(), random.Random(0)
    whole = ResultStore(store.folder.path).trials()
    found = 0
    for _ in range(150):
        harmed = bytearray(data)
        harmed[draw.randrange(4, len(data))] ^= 1 << draw.randrange(8)
        part.write_bytes(bytes(harmed))
        with pytest.raises(UserError, match="is damaged"):
            ResultStore(store.folder.path).trials()
        try:
            some = ResultStore(store.folder.path).trials(columns=["distance", "train_seed"])
        except UserError:
            found += 1
        else:  # the bit is in a column that nobody asked for
            pd.testing.assert_frame_equal(some, whole[["distance", "train_seed"]])
    assert 0 < found < 150
    for harm in (data[:-9], data[: len(data) // 2], data[-4:], b""):
        part.write_bytes(harm)
        with pytest.raises(UserError, match="is damaged"):
            ResultStore(store.folder.path).trials()


def test_readers_of_a_few_columns_are_exact_while_large_compactions_run(large, tmp_path, make_row, metrics):
    store = ResultStore.open_for_writing(tmp_path, metrics)
    for i in range(12):
        store.append([make_row(trial_id=f"t{i}", train_seed=i, phase="final")])
    stop, wrong, reads = threading.Event(), [], [0] * 4

    def read(slot: int) -> None:
        while not stop.is_set():
            found = ResultStore(tmp_path).table(["trial_id", "train_seed"], phases=["final"])["train_seed"].to_pylist()
            if found != list(range(len(found))) or len(found) < 12:
                wrong.append(found)
            reads[slot] += 1

    readers = [threading.Thread(target=read, args=(slot,)) for slot in range(4)]
    for reader in readers:
        reader.start()
    seed = 12
    while min(reads) < 3 or seed < 40:
        for _ in range(2):
            store.append([make_row(trial_id=f"t{seed}", train_seed=seed, phase="final")])
            seed += 1
        store.compact()
    stop.set()
    for reader in readers:
        reader.join()
    assert wrong == []


def test_a_retried_row_in_a_large_part_is_shown_once(large, store, make_row):
    _fill(store, make_row, 8)
    store.append([make_row(trial_id="t7", train_seed=7, phase="final", attempt=1, distance=0.5)])
    store.compact()
    assert store.trials(phases=["final"]).set_index("trial_id").loc["t7", "distance"] == 0.5
    assert len(store.trials()) == 8
    assert len(store.trials(attempts=True)) == 9


def test_the_leaderboard_is_the_same_from_a_large_part(large, store, make_row):
    for i in range(3):
        store.append(
            [make_row(trial_id=f"f{i}", train_seed=i, phase="final", method="finetune", selected_on="retrained")]
        )
    for i in range(6):
        store.append([make_row(trial_id=f"s{i}", train_seed=0, phase="search", unlearn_s=2.0, retrain_s=9.0)])
        line = {name: make_row()[name] for name in ("dataset", "model", "scenario")} | {"method": "finetune"}
        record = {"search_id": "s", "round": i // 4, "index": i % 4, "train_seed": 0, "trial_id": f"s{i}"}
        store.append_searches([record | {"line": pd.Series(line).to_json(), "hparams": "{}"}])
    before = load_leaderboard(store.folder.path)
    store.compact()
    pd.testing.assert_frame_equal(load_leaderboard(store.folder.path), before)
    (line,) = before.to_dict("records")
    assert line["tuning_s"] == pytest.approx(6 * 2.0 + 9.0)
