"""The append-only store of trial rows, searches and series in one results folder. Knows nothing of Ray.

``DIR/trials/part-<time>-<uuid>-<digest>.parquet`` and likewise ``searches/``, ``series/`` and ``metrics/``. A part is
immutable, its name is never used again, and every row in it is durable once ``append`` returned. Readers take whole
parts only and drop repeats, so any number of writers, readers and one compaction may run at the same time.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import IO, Any, TypeVar

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from raybench.errors import UserError, unknown
from raybench.folder import open_folder
from raybench.leaderboard.measurements import Measured, known_in_part, measured_of, with_measurements
from raybench.leaderboard.parts import Part, encode
from raybench.leaderboard.schema import (
    CORE_NAMES,
    METRICS_SCHEMA,
    SEARCHES_SCHEMA,
    SERIES_SCHEMA,
    MetricInfo,
    RowCheck,
    check_version,
    describe,
    metrics_of,
    trial_schema,
    unify,
)

T = TypeVar("T")
_ROW_KEY = ("trial_id", "attempt")
# What makes a record of each table unique, and which of equal ones stands: the first, except for series, where a later
# attempt draws its curve anew, and for metrics, where a later pool may have the models that an earlier one lacked.
_REPLACED = ("series", "metrics")
_KEYS: dict[str, tuple[str, ...]] = {
    "trials": _ROW_KEY,
    "searches": ("search_id", "round", "index", "train_seed"),
    "series": ("trial_id", "name", "step"),
    "metrics": ("trial_id", "attempt", "metric", "version", "evaluate_seed", "pool"),
}
_LISTINGS = 200  # more vanished files than this in one read is not a compaction any more


class ResultStore:
    """One results folder.

    Reading needs neither ``metrics`` nor a writable folder. ``metrics`` decides the columns of new rows.
    Errors that people can mend (damaged part, newer version, unwritable folder) are ``UserError``; a row
    that does not fit the schema is a ``ValueError`` and nothing of its batch is written.
    """

    def __init__(self, directory: str | os.PathLike[str], metrics: Sequence[MetricInfo] = ()) -> None:
        self.folder = open_folder(directory)
        self.metrics = list(metrics)
        self._schema = trial_schema(self.metrics)
        self._check = RowCheck(self._schema)
        self._seen: set[tuple[str, int]] | None = None
        self._last_stamp = 0
        self._lock = threading.Lock()

    @classmethod
    def open_for_writing(cls, directory: str | os.PathLike[str], metrics: Sequence[MetricInfo] = ()) -> ResultStore:
        """Create the folder, prove by a real write that rows can be kept, and index the rows already there."""
        store = cls(directory, metrics)
        store.folder.prepare("results folder", "--results")
        store._index()
        return store

    # Writing

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Keep ``rows``; when this returns they survive a power cut. Repeats of (trial_id, attempt) are dropped.

        A row may carry ``series``, the points of its curves: they are kept first, so a row is never without them.
        """
        given = list(rows)
        checked = [self._check({k: v for k, v in row.items() if k != "series"}) for row in given]
        self.append_series(point for row in given for point in row.get("series") or ())
        with self._lock:
            seen = self._index()
            fresh: dict[tuple[str, int], dict[str, Any]] = {}
            for row in checked:
                key = (row["trial_id"], row["attempt"])
                if key not in seen:
                    fresh.setdefault(key, row)
            if not fresh:
                return
            protocols = sorted({row["protocol"] for row in fresh.values()})
            schema = self._schema.with_metadata(describe("trials", self.metrics, ",".join(protocols)))
            self._write("trials", pa.Table.from_pylist(list(fresh.values()), schema=schema))
            seen.update(fresh)

    def append_searches(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Keep which trial answers (search, round, index, train seed); equal keys stand once, the first written."""
        self._append_plain("searches", records, SEARCHES_SCHEMA)

    def append_series(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Keep points (trial_id, name, step, x, y) of curves; a later point replaces an equal (id, name, step)."""
        self._append_plain("series", records, SERIES_SCHEMA)

    def append_metrics(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Keep metrics that were measured after their rows (``METRICS_SCHEMA``); ``trials`` puts them into the rows."""
        infos = {metric.name: metric for metric in self.metrics}
        rows = list(records)
        about = [infos[name] for name in dict.fromkeys(row["metric"] for row in rows)]
        self._append_plain("metrics", rows, METRICS_SCHEMA.with_metadata(describe("metrics", about)))

    def drop_searches(self, predicate: Callable[[dict[str, Any]], bool]) -> int:
        """Forget the search records that ``predicate`` holds for (``retry`` drops later rounds); returns how many.

        The kept ones are written first and old parts go newest first, so a kill in between leaves either all
        of them or a prefix of the rounds; calling again finishes the job.
        """
        with self._lock:
            names, table = self._read("searches")
            records = table.to_pylist()
            kept = [record for record in records if not predicate(record)]
            if len(kept) < len(records):
                self._replace("searches", names, pa.Table.from_pylist(kept, schema=table.schema))
            return len(records) - len(kept)

    def compact(self) -> None:
        """One file per table, by an atomic replace and then deletion of the old parts. One part stays as it is."""
        with self._lock:
            for kind in _KEYS:
                names, table = self._read(kind)
                if len(names) > 1:
                    self._replace(kind, names, table)

    # Reading

    def trials(
        self, attempts: bool = False, columns: Sequence[str] | None = None, phases: Sequence[str] | None = None
    ) -> pd.DataFrame:
        """Rows in the order they were written, each id once (its last attempt; every attempt if ``attempts``).
        ``phases``: only rows of these."""
        return _frame(self.table(columns, attempts, phases))

    def table(
        self, columns: Sequence[str] | None = None, attempts: bool = False, phases: Sequence[str] | None = None
    ) -> pa.Table:
        """``trials`` as a table. Of a compacted folder only the columns and phases asked for are read."""
        core = columns is not None and set(columns) <= set(CORE_NAMES)
        late = () if core else ("missing",)  # what was measured after its row is put beside it
        wanted = None if columns is None else list(dict.fromkeys([*columns, *late, *_ROW_KEY]))
        _, table = self._read("trials", wanted, phases)
        if not core:
            table = with_measurements(table, self._read("metrics")[1])
        for name in columns or ():
            if name not in table.schema.names:
                raise unknown("column", name, self.schema().names)
        if not attempts and (pc.max(table["attempt"]).as_py() or 0) > 0:  # without retries each id is there once
            keys = table.select(list(_ROW_KEY)).to_pandas()
            last = keys.sort_values("attempt", kind="stable").drop_duplicates("trial_id", keep="last")
            table = table.take(pa.array(sorted(last.index), type=pa.int64()))
        return table if columns is None else table.select(list(columns))

    def searches(self) -> pd.DataFrame:
        """The search records, by search, round, index and train seed."""
        frame = _frame(self._read("searches")[1])
        return frame.sort_values(list(_KEYS["searches"]), ignore_index=True)

    def tried(self) -> pa.Table:
        """Which trials were tried for which line (``line``, ``trial_id``), a row for each search record."""
        return self._read("searches", ["line", "trial_id"])[1]

    def series(self, trial_id: str | None = None) -> pd.DataFrame:
        """Points of all curves, or of one trial's."""
        frame = _frame(self._read("series")[1])
        if trial_id is not None:
            frame = frame[frame["trial_id"] == trial_id]
        return frame.sort_values(list(_KEYS["series"]), ignore_index=True)

    def ids(self) -> set[str]:
        """Ids of all trials that have a row, read from the folder."""
        _, table = self._read("trials", list(_ROW_KEY))
        return set(table["trial_id"].to_pylist())

    def schema(self) -> pa.Schema:
        """The unified schema of the parts; that of ``metrics`` in an empty folder."""
        _, schemas = self._collect("trials", lambda part: part.schema)
        return unify(schemas or [self._schema], "trials")

    def metrics_on_disk(self) -> list[MetricInfo]:
        """The metrics that the rows have, measured in the trials or after them."""
        _, schemas = self._collect("metrics", lambda part: part.schema)
        late = metrics_of(unify(schemas, "metrics")) if schemas else []
        names = {metric.name: metric for metric in [*metrics_of(self.schema()), *late]}
        return list(names.values())

    def measured(self) -> dict[str, Measured]:
        """What has been measured of each trial's last attempt, by trial id."""
        return measured_of(self._collect("trials", known_in_part)[1], self._read("metrics")[1])

    # Parts

    def _index(self) -> set[tuple[str, int]]:
        if self._seen is None:
            _, table = self._read("trials", list(_ROW_KEY))
            self._seen = set(zip(*(table[name].to_pylist() for name in _ROW_KEY), strict=True))
        return self._seen

    def _append_plain(self, kind: str, records: Iterable[Mapping[str, Any]], schema: pa.Schema) -> None:
        rows = list(map(RowCheck(schema), records))
        if rows:
            with self._lock:
                self._write(kind, pa.Table.from_pylist(rows, schema=schema))

    def _write(self, kind: str, table: pa.Table, stamp: int | None = None) -> str:
        data, digest = encode(table, compacted=stamp is not None)
        if stamp is None:
            # Names sort by time of writing, also within one tick of the clock.
            stamp = self._last_stamp = max(time.time_ns(), self._last_stamp + 1)
        name = f"{kind}/part-{stamp:020d}-{uuid.uuid4().hex}-{digest}.parquet"
        self.folder.put(name, data)
        return name

    def _replace(self, kind: str, names: Sequence[str], table: pa.Table) -> None:
        if table.num_rows:
            # The time of the oldest part keeps "first written" true beside parts that others add meanwhile.
            self._write(kind, table, stamp=min(map(_stamp, names)))
        for name in reversed(names):
            self.folder.delete(name)

    def _collect(self, kind: str, read: Callable[[Part], T]) -> tuple[list[str], list[T]]:
        """``read`` applied to every part of one consistent listing.

        Two equal listings in a row are a snapshot (names never return), which one listing is not while a
        compaction adds and removes files. A part that is gone when it is opened starts everything anew.
        """
        for _ in range(_LISTINGS):
            names = self.folder.names(kind)
            if names != self.folder.names(kind):
                continue
            found: list[T] = []
            try:
                for name in names:
                    with self.folder.open(name) as file:
                        found.append(self._checked(kind, name, file, read, len(names) == 1))
            except FileNotFoundError:
                continue
            return names, found
        raise UserError(f"{self.folder}/{kind} keeps changing while it is read; stop the other writers and try again")

    def _checked(self, kind: str, name: str, file: IO[bytes], read: Callable[[Part], T], alone: bool) -> T:
        path = f"{self.folder}/{name}"
        try:
            part = Part(name, file, alone)
            check_version(part.schema, kind, path)
            return read(part)
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{path} is damaged ({type(error).__name__}: {str(error).splitlines()[0]}); move it out of the folder "
                "and run the same command again: only what it held is repeated"
            ) from error

    def _read(
        self, kind: str, columns: Sequence[str] | None = None, phases: Sequence[str] | None = None
    ) -> tuple[list[str], pa.Table]:
        distinct = False

        def read(part: Part) -> pa.Table:
            nonlocal distinct
            distinct = part.distinct
            keys = () if distinct else _KEYS[kind]
            names = None if columns is None else list(dict.fromkeys([*columns, *keys]))
            return part.read(names) if phases is None else part.where("phase", phases, names)

        names, tables = self._collect(kind, read)
        if not tables:
            empty = {"trials": self._schema, "searches": SEARCHES_SCHEMA, "series": SERIES_SCHEMA}
            return names, empty.get(kind, METRICS_SCHEMA).empty_table()
        try:
            schema = unify([table.schema for table in tables], kind)
        except pa.ArrowException as error:
            raise UserError(
                f"the parts in {self.folder}/{kind} disagree about a column's type ({error}); "
                "use one results folder per experiment"
            ) from error
        table = pa.concat_tables(tables, promote_options="permissive").select(schema.names)
        table = table.cast(schema.remove_metadata()).replace_schema_metadata(schema.metadata)
        if distinct:
            return names, table
        keys = table.select(list(_KEYS[kind])).to_pandas()
        repeats = keys.duplicated(keep="last" if kind in _REPLACED else "first").to_numpy()
        return names, table.filter(pa.array(~repeats)) if repeats.any() else table


def _stamp(name: str) -> int:
    """Time of writing in a part's name; 0, the oldest, for one that somebody named otherwise."""
    pieces = name.rsplit("/", 1)[-1].split("-")
    return int(pieces[1]) if len(pieces) > 2 and pieces[1].isdecimal() else 0


def _frame(table: pa.Table) -> pd.DataFrame:
    frame: pd.DataFrame = table.to_pandas()
    return frame
