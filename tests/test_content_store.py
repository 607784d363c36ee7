"""The store: whole entries only, damage is found, two writers agree."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from raybench.content_store import ContentStore, state_of
from raybench.errors import StorageError
from raybench.folder import LocalFolder

TENSORS = {
    "w": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
    "half": torch.tensor([1.5, float("nan")], dtype=torch.bfloat16),
    "count": torch.tensor(3),
    "mask": torch.tensor([True, False]),
    "none": torch.empty(0, 5),
}
RECORD = {"train_s": 0.1 + 0.2, "by": "x", "peak": None, "nested": {"b": [1, 2], "a": 1e-300}}


def files_of(store: ContentStore) -> Path:
    assert isinstance(store.folder, LocalFolder)
    return store.folder.path / "kind" / "ab" / "abcd"


def tensors_of(folder: Path) -> Path:
    (file,) = folder.glob("*.safetensors")
    return file


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
    assert {k: v for k, v in record.items() if k not in ("sha256", "file")} == RECORD


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
    tensors_of(files_of(store)).unlink()
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
    "flipped byte": lambda folder: flip(tensors_of(folder), -1),
    "flipped header": lambda folder: flip(tensors_of(folder), 9),
    "truncated": lambda folder: os.truncate(tensors_of(folder), 20),
    "emptied": lambda folder: os.truncate(tensors_of(folder), 0),
    "no tensors": lambda folder: tensors_of(folder).unlink(),
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
    assert ContentStore(str(store.folder)).get("kind", "abcd") is None
    store.put("kind", "abcd", TENSORS, RECORD)
    assert_whole(store)
    assert list((Path(str(store.folder)) / ".staging").iterdir()) == []


def test_what_lost_its_record_can_be_made_good_unread(store: ContentStore) -> None:
    """``put`` alone, without a ``get`` before it that cleans up."""
    (files_of(store) / "record.json").unlink()
    store.put("kind", "abcd", TENSORS, RECORD)
    assert_whole(store)


def test_a_failed_write_leaves_nothing(store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        store.put("kind", "new", TENSORS, RECORD)
    assert not store.has("kind", "new")
    assert list((Path(str(store.folder)) / ".staging").iterdir()) == []


def test_an_entry_appears_whole(store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record comes last, by one replace: before it the tensors lie there and the key is not there yet."""
    replace, seen = os.replace, []

    def watched(source: str, target: Path) -> None:
        seen.append((target.suffix, store.has("kind", "new"), store.get("kind", "new")))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    store.put("kind", "new", TENSORS, RECORD)
    assert seen == [(".safetensors", False, None), (".json", False, None)]
    assert_whole(store, "new")  # looking in between took nothing away


def test_of_two_writers_one_whole_entry_stands(store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their tensors may differ in the last bit: what stands is one writer's record with the same writer's tensors."""
    replace = os.replace

    def late(source: str, target: str) -> None:
        monkeypatch.setattr(os, "replace", replace)
        other = {**TENSORS, "w": TENSORS["w"] + 1}
        ContentStore(str(store.folder)).put("kind", "new", other, RECORD)  # the other writer gets in between
        replace(source, target)

    monkeypatch.setattr(os, "replace", late)
    store.put("kind", "new", TENSORS, RECORD)
    assert_whole(store, "new")
    assert list((Path(str(store.folder)) / ".staging").iterdir()) == []


def test_entries_of_earlier_versions_are_read(store: ContentStore) -> None:
    """They have one fixed name for the tensors, which the record does not repeat."""
    folder = files_of(store)
    record = {k: v for k, v in json.loads((folder / "record.json").read_text()).items() if k not in ("sha256", "file")}
    old = tensors_of(folder).rename(folder / "tensors.safetensors")
    digest = hashlib.sha256(old.read_bytes() + json.dumps(record, sort_keys=True).encode()).hexdigest()
    (folder / "record.json").write_text(json.dumps({**record, "sha256": digest}))
    assert_whole(store)


def test_a_record_cannot_point_out_of_its_entry(store: ContentStore, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.safetensors"
    elsewhere.write_bytes(tensors_of(files_of(store)).read_bytes())
    record = {**RECORD, "file": f"../../../../{elsewhere.name}"}
    digest = hashlib.sha256(elsewhere.read_bytes() + json.dumps(record, sort_keys=True).encode()).hexdigest()
    (files_of(store) / "record.json").write_text(json.dumps({**record, "sha256": digest}))
    assert store.get("kind", "abcd") is None


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
    with pytest.raises(StorageError, match=r"store must be writable, got .*store .*--store DIR or RAYBENCH_STORE"):
        store.probe()
    with pytest.raises(StorageError, match="must take writes"):
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
