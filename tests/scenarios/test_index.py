from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from raybench.data import RawData, Source
from raybench.errors import UserError
from raybench.experiment import make_experiment, with_files
from raybench.problem import draw_request
from raybench.registry import SCENARIOS
from raybench.scenarios.index import IndexParams
from raybench.spec import Choice, ProblemSpec

TOTAL = 50
TRAIN = np.arange(1, TOTAL, 2)  # the odd rows; the even ones are held out
LABELS = np.arange(TOTAL) % 5
IMAGES = np.zeros((TOTAL, 1, 4, 4), dtype=np.uint8)


def ask(file: Path):
    entry = SCENARIOS["index"]
    source = Source("made", TRAIN, TOTAL)
    rng = np.random.default_rng(0)
    return entry.fn(IMAGES[TRAIN], LABELS[TRAIN], 5, entry.params(file=str(file)), rng, source)


def write(file: Path, rows: list[int]) -> Path:
    if file.suffix == ".npy":
        np.save(file, np.asarray(rows, dtype=np.int32))
    elif file.suffix == ".json":
        file.write_text(json.dumps(rows))
    elif file.suffix == ".csv":
        file.write_text("row,reason\n" + "".join(f"{row},asked to\n" for row in rows))
    else:
        file.write_text("\n".join(map(str, rows)) + "\n")
    return file


@pytest.mark.parametrize("suffix", [".npy", ".txt", ".csv", ".json"])
def test_listed_rows_that_are_trained_on(tmp_path, suffix):
    request = ask(write(tmp_path / f"rows{suffix}", [7, 3, 8, 49]))  # 8 is held out
    assert TRAIN[request.forget].tolist() == [3, 7, 49]


@pytest.mark.parametrize("suffix", [".npy", ".txt", ".csv", ".json"])
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([3, 7, 3], "must differ, got 3 twice; name each once"),
        ([3, 50], "must be 0 to 49, the training images of made, got 50; take it out"),
        ([-1, 3], "must be 0 to 49, the training images of made, got -1"),
        ([], "must list at least one row number, got none"),
        ([2, 4], "must list some and not all of the 25 samples that are trained on, got 0 of them"),
        (TRAIN.tolist(), "must list some and not all of the 25 samples .* got 25 of them"),
    ],
)
def test_bad_lists(tmp_path, suffix, rows, message):
    with pytest.raises(UserError, match=message) as caught:
        ask(write(tmp_path / f"rows{suffix}", rows))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b"3\nseven\n"),
        ("a.txt", b"3.5\n"),
        ("a.txt", b"\xff\xfe"),
        ("a.csv", b"row\n3\nx\n"),
        ("a.json", b'{"rows": [3]}'),
        ("a.json", b"[3, 4.5]"),
        ("a.json", b"[3, true]"),
        ("a.json", b"[3,"),
        ("a.npy", b"not numpy"),
    ],
)
def test_files_that_hold_something_else(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"a\.\w+ must hold row numbers \(\.\w+\), got \w+: .*; write it again"):
        ask(tmp_path / name)


@pytest.mark.parametrize("array", [np.zeros((2, 2), dtype=int), np.array([1.0]), np.array([{}], dtype=object)])
def test_arrays_that_are_no_row_numbers(tmp_path, array):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(UserError, match=r"a.npy must hold row numbers \(.npy\), got ValueError: "):
        ask(tmp_path / "a.npy")


@pytest.mark.parametrize("file", ["", "rows.dat", 3, None])
def test_params(file):
    with pytest.raises(ValueError, match=r"file must be the path of a list in .npy, .txt, .csv, .json, got"):
        IndexParams(file=file)


def planned(path: str, root: str | None = None) -> ProblemSpec:
    spec = {
        "name": "i",
        "problems": [{"dataset": "digits", "models": ["mlp"], "scenarios": [{"index": {"file": path}}]}],
        "methods": ["finetune"],
    }
    experiment, digests = with_files(make_experiment(spec), root)
    (cell,) = experiment.cells
    versions = {"file": digests[cell.scenario.label]}
    return ProblemSpec(cell.dataset, "c", cell.model, cell.scenario, {}, 0, versions=versions)


def test_the_content_identifies_a_problem_and_must_not_change(tmp_path):
    one, copy = write(tmp_path / "one.txt", [3, 5]), write(tmp_path / "copy.txt", [3, 5])
    spec = planned("one.txt", str(tmp_path))
    assert spec.scenario.label == "index(file=one.txt)"
    assert spec.id == planned(str(copy)).id != planned(str(write(tmp_path / "other.txt", [3]))).id
    raw = RawData("made", IMAGES, LABELS, IMAGES[:5], LABELS[:5], 5, (0.5,), (0.5,))
    assert TRAIN[draw_request(spec, raw, TRAIN).forget].tolist() == [3, 5]
    again = dataclasses.replace(spec, scenario=Choice("index", {"file": str(copy)}))
    assert again.id == spec.id
    one.write_text("3\n")
    with pytest.raises(UserError, match=r"one.txt must be the same on every node and in every run, got digest"):
        draw_request(spec, raw, TRAIN)
    with pytest.raises(
        UserError, match=r"file of index must be a file, got nothing at gone.txt; give an absolute path"
    ):
        planned("gone.txt")
