"""Damaged and foreign files in results and store: one line names the file, no good row is lost, the rerun completes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from raybench.leaderboard.store import ResultStore
from raybench.run import Options, run

RUN = ("run", "{spec}", "--serial", "--quiet", "--results", "out", "--store", "store")


@dataclass
class Damage:
    """``do(folder)`` harms a folder that holds ``out/`` and ``store/`` and returns what must be named, if anything.

    ``undo`` is the way out that the line tells; by default the file is moved away.
    """

    do: Callable[[Path], Path | None]
    words: tuple[str, ...] = ("is damaged", "move it out of the folder")
    undo: Callable[[Path], object] | None = None


def first(pattern: str) -> Callable[[Path], Path]:
    return lambda folder: sorted(folder.glob(pattern))[0]


def cut(pattern: str, keep: float = 0.5) -> Callable[[Path], Path]:
    def do(folder: Path) -> Path:
        file = first(pattern)(folder)
        os.truncate(file, int(file.stat().st_size * keep))
        return file

    return do


def flip(pattern: str, at: float) -> Callable[[Path], Path]:
    def do(folder: Path) -> Path:
        file = first(pattern)(folder)
        data = bytearray(file.read_bytes())
        data[int(len(data) * at)] ^= 0x10
        file.write_bytes(bytes(data))
        return file

    return do


def write(name: str, data: bytes, named: bool = True) -> Callable[[Path], Path | None]:
    def do(folder: Path) -> Path | None:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        return file if named else None

    return do


def foreign_table(folder: Path) -> Path:
    file = folder / "out" / "trials" / "part-1-foreign.parquet"
    pd.DataFrame({"trial_id": ["x"], "colour": ["red"]}).to_parquet(file)
    return file


def another_type(folder: Path) -> Path:
    table = pq.read_table(first("out/trials/*.parquet")(folder))
    at = table.schema.get_field_index("unlearn_s")
    text = table.set_column(at, "unlearn_s", table["unlearn_s"].cast("string")).replace_schema_metadata(
        table.schema.metadata
    )
    file = folder / "out" / "trials" / "part-9-other.parquet"
    pq.write_table(text, file)
    return file


def newer(folder: Path) -> Path:
    table = pq.read_table(first("out/trials/*.parquet")(folder))
    file = folder / "out" / "trials" / "part-9-newer.parquet"
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"raybench.schema_version": b"99"}), file)
    return file


def a_folder(folder: Path) -> Path:
    place = folder / "out" / "trials" / "part-9-folder.parquet"
    place.mkdir()
    return place


def dangling(folder: Path) -> Path:
    place = folder / "out" / "trials" / "part-9-link.parquet"
    place.symlink_to("nowhere.parquet")
    return place.parent


def copied(folder: Path) -> None:
    part = first("out/trials/*.parquet")(folder)
    shutil.copy(part, part.with_name("mine.parquet"))


def staged(folder: Path) -> None:
    data = first("out/trials/*.parquet")(folder).read_bytes()
    write("out/.staging/dead.part", data[: len(data) // 2])(folder)


def unreadable(folder: Path) -> Path:
    place = folder / "out" / "trials"
    place.chmod(0)
    return place


REFUSED = {
    "trials: cut in half": Damage(cut("out/trials/*.parquet")),
    "trials: the end is missing": Damage(cut("out/trials/*.parquet", 0.99)),
    "trials: emptied": Damage(cut("out/trials/*.parquet", 0.0)),
    "trials: a bit of a page": Damage(flip("out/trials/*.parquet", 0.1)),
    "trials: a bit of the last bytes": Damage(flip("out/trials/*.parquet", 0.99999)),
    "trials: text": Damage(write("out/trials/part-9-x.parquet", b"not a table")),
    "trials: zeros": Damage(write("out/trials/part-9-x.parquet", bytes(5000))),
    "trials: a table of somebody else": Damage(foreign_table, ("part-1-foreign.parquet",)),
    "trials: another type": Damage(another_type, ("disagree about a column's type",)),
    "trials: a newer version": Damage(newer, ("upgrade raybench",)),
    "trials: a folder": Damage(a_folder, ("must be a readable file",)),
    "trials: a link to nothing": Damage(
        dangling, ("keeps changing",), lambda folder: (folder / "out/trials/part-9-link.parquet").unlink()
    ),
    "trials: no permission": Damage(
        unreadable, ("permission",), lambda folder: (folder / "out" / "trials").chmod(0o755)
    ),
    "searches: cut in half": Damage(cut("out/searches/*.parquet")),
    "searches: a bit of a page": Damage(flip("out/searches/*.parquet", 0.05)),
    "searches: text": Damage(write("out/searches/part-9-x.parquet", b"not a table")),
    "lock: no JSON": Damage(write("out/driver.lock", b"{"), ("damaged", "delete it")),
    "lock: a list": Damage(write("out/driver.lock", b"[1]"), ("damaged", "delete it")),
    "lock: bytes": Damage(write("out/driver.lock", b"\xff\xfe"), ("damaged", "delete it")),
}  # fmt: skip

BORNE = {
    "trials: half a part in staging": staged,
    "trials: a copy of a part": copied,
    "trials: notes": write("out/trials/notes.txt", b"mine", named=False),
    "trials: a hidden file": write("out/trials/.DS_Store", b"\x00", named=False),
    "trials: a file of Spark": write("out/trials/_SUCCESS.parquet", b"", named=False),
    "spec.yaml: garbage": write("out/spec.yaml", b"\xff\xfe{[", named=False),
    "facts.json: garbage": write("out/facts.json", b"\xff\xfe{[", named=False),
    "spec.yaml: emptied": write("out/spec.yaml", b"", named=False),
    "leaderboard: cut in half": cut("out/leaderboard.parquet"),
    "leaderboard: text": write("out/leaderboard.parquet", b"not a table", named=False),
    "artifacts: cut in half": cut("out/artifacts/*/*.safetensors"),
    "artifacts: gone": lambda folder: shutil.rmtree(folder / "out" / "artifacts"),
    "store: a bit of a model": flip("store/references/*/*/*.safetensors", 0.9),
    "store: a bit of a model's header": flip("store/references/*/*/*.safetensors", 0.01),
    "store: a model cut in half": cut("store/references/*/*/*.safetensors"),
    "store: a model gone": lambda folder: first("store/references/*/*/*.safetensors")(folder).unlink(),
    "store: a record cut in half": cut("store/references/*/*/record.json"),
    "store: a record emptied": cut("store/references/*/*/record.json", 0.0),
    "store: a record of another cost": flip("store/references/*/*/record.json", 0.7),
    "store: outputs cut in half": cut("store/outputs/*/*/*.safetensors"),
    "store: half an entry in staging": write("store/.staging/dead.part", b"{", named=False),
    "store: gone": lambda folder: shutil.rmtree(folder / "store"),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose parts were not put together: one per trial."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ResultStore, "compact", lambda self: None)
        options = Options(str(folder / "out"), str(folder / "store"), serial=True, quiet=True)
        assert run(SPEC, options=options).exit_code == 0
    return folder


SPEC: dict[str, Any] = {
    "name": "tiny",
    "problems": [
        {
            "dataset": {"name": "digits", "train_size": 200},
            "models": [{"name": "mlp", "hidden": [8]}],
            "scenarios": [{"name": "class", "classes": [0]}],
        }
    ],
    "methods": [{"name": "finetune", "hparams": {"lr": 0.01}, "space": {"epochs": {"low": 1, "high": 2}}}],
    "recipe": {"epochs": 1},
    "seeds": {"train": [0]},
    "gold_seeds": 1,
    "search": {"trials": 2, "round_size": 2},
    "metrics": ["retain_accuracy"],
}
MORE = SPEC | {"seeds": {"train": [0], "unlearn": [0, 1]}}  # needs the models again


@pytest.fixture
def folder(whole: Path, cli: Any, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    return tmp_path


def rows(folder: Path) -> dict[str, Any]:
    frame = ResultStore(folder / "out").trials(attempts=True)
    assert frame["trial_id"].is_unique
    return {row["trial_id"]: {k: str(v) for k, v in row.items()} for row in frame.to_dict("records")}


def good(before: dict[str, Any], file: Path | None) -> dict[str, Any]:
    """The rows that were in other files than the damaged one."""
    parts = sorted((file.parent if file is not None else Path("out/trials")).glob("*.parquet"))
    if file is None or file.parent.name != "trials" or file not in parts:
        return before
    harmed = {trial_id for trial_id, part in PARTS.items() if part == file.name}
    return {trial_id: row for trial_id, row in before.items() if trial_id not in harmed}


PARTS: dict[str, str] = {}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_one_line_and_its_way_out_works(folder: Path, cli: Any, name: str) -> None:
    if name == "trials: no permission" and os.geteuid() == 0:
        pytest.skip("root may read everything")
    before, damage = rows(folder), REFUSED[name]
    for part in (folder / "out" / "trials").glob("*.parquet"):
        for trial_id in pq.read_table(part, columns=["trial_id"])["trial_id"].to_pylist():
            PARTS[trial_id] = part.name
    harmed = damage.do(folder)
    assert harmed is not None
    said = cli(*RUN, spec=SPEC)
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1), said
    for word in damage.words:
        assert word in said.err
    if "disagree" not in said.err:
        assert harmed.name in said.err
    kept = good(before, harmed)
    if damage.undo is not None:
        damage.undo(folder)
    else:
        harmed.rename(folder / "moved-away")
    done = cli(*RUN)
    assert (done.code, done.err) == (0, ""), done
    after = rows(folder)
    assert after.keys() == before.keys()
    assert {trial_id: after[trial_id] for trial_id in kept} == kept
    assert f"{len(before) - len(kept)} trials run now" in done.out


@pytest.mark.parametrize("name", BORNE)
def test_what_can_be_made_again_is_and_what_is_foreign_stays(folder: Path, cli: Any, name: str) -> None:
    before = rows(folder)
    BORNE[name](folder)
    done = cli(*RUN, spec=MORE)
    assert (done.code, done.err) == (0, ""), done
    after = rows(folder)
    assert {trial_id: after[trial_id] for trial_id in before} == before
    assert len(after) == len(before) + 1
    assert "1 trials run now" in done.out
    again = cli(*RUN)
    assert (again.code, "0 trials run now (0 reference models trained)" in again.out) == (0, True), again
    assert "finetune" in cli("leaderboard", "out", "--gated").out


def test_retry_of_a_garbled_spec_is_one_line(folder: Path, cli: Any) -> None:
    for data in (b"\xff\xfe{[", b"", b"[1]", b"name: ["):
        (folder / "out" / "spec.yaml").write_bytes(data)
        said = cli("retry", "--failed", "out", "--serial", "--store", "store")
        assert (said.code, said.err.count("\n")) == (2, 1)
        assert "out/spec.yaml" in said.err


@pytest.mark.parametrize("command", ["leaderboard", "figures"])
@pytest.mark.parametrize("name", ["trials: cut in half", "trials: text", "trials: a bit of a page"])
def test_readers_name_a_damaged_part_too(folder: Path, cli: Any, command: str, name: str) -> None:
    harmed = REFUSED[name].do(folder)
    (folder / "out" / "leaderboard.parquet").unlink()
    said = cli(command, "out")
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert harmed is not None
    assert harmed.name in said.err
