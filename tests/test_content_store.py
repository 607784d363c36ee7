"""The store: whole entries only, damage is found, two writers agree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from raybench.content_store import ContentStore, state_of
from raybench.errors import UserError

TENSORS = {
    "w": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
    "half": torch.tensor([1.5, float("nan")], dtype=torch.bfloat16),
    "count": torch.tensor(3),
    "mask": torch.tensor([True, False]),
    "none": torch.empty(0, 5),
}
RECORD = {"train_s": 0.1 + 0.2, "by": "x", "peak": None, "nested": {"b": [1, 2], "a": 1e-300}}


def files_of(store: ContentStore) -> Path:
    return store.root / "kind" / "ab" / "abcd"


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    store = ContentStore(tmp_path / "store")
    store.probe()
    store.put("kind", "abcd", TENSORS, RECORD)
    return store


def assert_whole(store: ContentStore, key: str = "abcd") -> None:
    entry = store.get("kind", key)
    assert entry is not None
    tensors, record = entry
    assert tensors.keys() == TENSORS.keys()
    for name, t in TENSORS.items():
        assert (tensors[name].dtype, tensors[name].shape) == (t.dtype, t.shape)
        assert torch.equal(tensors[name].nan_to_num(), t.nan_to_num())
    assert {k: v for k, v in record.items() if k != "sha256"} == RECORD


def test_what_comes_out_is_what_went_in(store: ContentStore) -> None:
    assert store.has("kind", "abcd")
    assert_whole(store)
    assert store.get("kind", "abce") is None
    assert store.get("other", "abcd") is None
    assert not store.has("kind", "abce")
    assert store.record("kind", "abce") is None
    assert store.record("kind", "abcd") is not None


def test_values_are_copies(store: ContentStore) -> None:
    first = store.get("kind", "abcd")
    assert first is not None
    first[0]["w"].zero_()
    assert_whole(store)
    shared = torch.zeros(4)
    store.put("kind", "views", {"a": shared, "b": shared[:2], "t": torch.ones(2, 3).T}, {})
    entry = store.get("kind", "views")
    assert entry is not None
    assert entry[0]["t"].shape == (3, 2)


def test_keys_and_kinds_are_apart(store: ContentStore) -> None:
    store.put("kind", "abcf", {"w": torch.zeros(1)}, {})
    store.put("other", "abcd", {"w": torch.ones(1)}, {})
    assert_whole(store)
    entry = store.get("other", "abcd")
    assert entry is not None
    assert entry[0]["w"].tolist() == [1.0]
    (files_of(store) / "tensors.safetensors").unlink()
    assert store.get("kind", "abcd") is None
    assert store.get("kind", "abcf") is not None


def test_a_key_is_written_once(store: ContentStore) -> None:
    before = (files_of(store) / "record.json").stat().st_mtime_ns
    store.put("kind", "abcd", {"w": torch.zeros(1)}, {})
    assert_whole(store)
    assert (files_of(store) / "record.json").stat().st_mtime_ns == before


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(bytes(data))


DAMAGE = {
    "flipped byte": lambda folder: flip(folder / "tensors.safetensors", -1),
    "flipped header": lambda folder: flip(folder / "tensors.safetensors", 9),
    "truncated": lambda folder: os.truncate(folder / "tensors.safetensors", 20),
    "emptied": lambda folder: os.truncate(folder / "tensors.safetensors", 0),
    "no tensors": lambda folder: (folder / "tensors.safetensors").unlink(),
    "no record": lambda folder: (folder / "record.json").unlink(),
    "empty folder": lambda folder: [f.unlink() for f in folder.iterdir()],
    "record cut short": lambda folder: os.truncate(folder / "record.json", 10),
    "record emptied": lambda folder: os.truncate(folder / "record.json", 0),
    "record is a list": lambda folder: (folder / "record.json").write_text("[]"),
    "record without checksum": lambda folder: (folder / "record.json").write_text(json.dumps(RECORD)),
    "another cost": lambda folder: (folder / "record.json").write_text(
        (folder / "record.json").read_text().replace('"x"', '"y"')
    ),
    "not text": lambda folder: (folder / "record.json").write_bytes(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found_and_can_be_made_good(store: ContentStore, kind: str) -> None:
    DAMAGE[kind](files_of(store))
    assert ContentStore(store.root).get("kind", "abcd") is None
    store.put("kind", "abcd", TENSORS, RECORD)
    assert_whole(store)
    assert list((store.root / ".staging").iterdir()) == []


def test_what_lost_its_record_can_be_made_good_unread(store: ContentStore) -> None:
    """``put`` alone, without a ``get`` before it that cleans up."""
    (files_of(store) / "record.json").unlink()
    store.put("kind", "abcd", TENSORS, RECORD)
    assert_whole(store)


def test_a_failed_write_leaves_nothing(store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        store.put("kind", "new", TENSORS, RECORD)
    assert not store.has("kind", "new")
    assert list((store.root / ".staging").iterdir()) == []


def test_an_entry_appears_whole(store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the moment of the one rename, all files are written and the key is not there yet."""
    rename, seen = os.rename, []

    def watched(source: str, target: str) -> None:
        seen.append((sorted(f.name for f in Path(source).iterdir()), store.has("kind", "new")))
        rename(source, target)

    monkeypatch.setattr(os, "rename", watched)
    store.put("kind", "new", TENSORS, RECORD)
    assert seen == [(["record.json", "tensors.safetensors"], False)]


def test_the_second_of_two_writers_drops_its_own(store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.rename

    def late(source: str, target: str) -> None:
        monkeypatch.setattr(os, "rename", rename)
        ContentStore(store.root).put("kind", "new", TENSORS, RECORD)  # the other writer gets in between
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    store.put("kind", "new", TENSORS, RECORD)
    assert_whole(store, "new")
    assert list((store.root / ".staging").iterdir()) == []


WRITER = """
import sys, torch
from raybench.content_store import ContentStore
store = ContentStore(sys.argv[1])
for i in range(60):
    store.put("race", f"key{i}", {"w": torch.full((50_000,), float(i))}, {"i": i})
    tensors, record = store.get("race", f"key{i}")
    assert record["i"] == i and bool((tensors["w"] == i).all())
"""


def test_two_processes_write_the_same_keys(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [(w.communicate()[1], w.returncode) for w in writers] == [("", 0), ("", 0)]
    store = ContentStore(tmp_path)
    assert all(store.get("race", f"key{i}") is not None for i in range(60))
    assert list((tmp_path / ".staging").iterdir()) == []


def test_a_root_that_takes_no_writes_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")  # a folder under a file: impossible for root too
    store = ContentStore(tmp_path / "file" / "store")
    with pytest.raises(UserError, match=r"writable folder, got .*store .*--store DIR"):
        store.probe()
    with pytest.raises(UserError, match="must take writes"):
        store.put("kind", "abcd", TENSORS, RECORD)
    assert store.get("kind", "abcd") is None
    assert not store.has("kind", "abcd")


def test_state_of_is_a_copy() -> None:
    model = nn.BatchNorm1d(2)
    state = state_of(model)
    with torch.no_grad():
        model.weight.zero_()
    assert state["weight"].tolist() == [1.0, 1.0]
    assert state.keys() == model.state_dict().keys()
