"""One Parquet part: how it is written, how it is called, and how it is read without trusting a single bit of it.

Parquet itself has no checksum of its footer. A part has the digest of all its bytes in its name. A large one, which a
compaction leaves, has that of its footer there, and in the footer digests of its columns' chunks: who needs a few
columns reads, checks and decodes these alone.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Sequence
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

LARGE = 16 * 2**20  # bytes in memory
GROUP = 2**14  # rows of a large part that can be read without the others
_NAME = re.compile(r"part-[0-9]+-[0-9a-f]{32}-(footer-)?([0-9a-f]{32})\.parquet$")  # earlier versions: no digest
_CHUNKS = b"raybench.chunks"
_TAIL = 8  # length of the footer (4 bytes, little endian) and the magic word


def encode(table: pa.Table, compacted: bool = False) -> tuple[bytes, str]:
    """A part's bytes, and the last piece of its name. What is compacted is kept small, what is not is written quickly:
    a row or a few are there for minutes."""
    if not compacted:
        data = _written(table, compression="lz4", use_dictionary=False, write_statistics=False)
    elif table.nbytes < LARGE:
        data = _written(table, compression="zstd")
    else:
        return _with_digests(_written(table, compression="zstd", row_group_size=GROUP), table.schema)
    return data, _digest(data)


class Part:
    """A part that is open for reading. ``OSError`` where its bytes are not those that were written."""

    def __init__(self, name: str, file: IO[bytes], alone: bool = False) -> None:
        """``alone``: there is no other part of this kind."""
        told = _NAME.search(name)
        self.large = bool(told and told[1])
        self.alone = alone
        self._source = file
        size = file.seek(0, io.SEEK_END)
        # Only pages that are read into are ever real memory; what was checked is what is decoded.
        self._bytes = np.zeros(size, dtype=np.uint8)
        found = self._get(0, size) if not self.large else self._footer(size)
        if told and told[2] != _digest(found):
            raise OSError("its content is not what its name says")
        self._file = pq.ParquetFile(pa.BufferReader(pa.py_buffer(self._bytes)))
        self._checked: set[tuple[int, int]] = set()

    @property
    def schema(self) -> pa.Schema:
        """Columns and metadata."""
        schema: pa.Schema = self._file.schema_arrow
        kept = {key: value for key, value in (schema.metadata or {}).items() if key != _CHUNKS}
        return schema.with_metadata(kept)

    @property
    def distinct(self) -> bool:
        """Whether no record of it can have a repeat, in it or beside it."""
        return self.alone and self.large

    def read(self, columns: Sequence[str] | None = None, groups: Sequence[int] | None = None) -> pa.Table:
        """These columns (those it has; default all) of these row groups (default all)."""
        schema = self.schema
        names = schema.names if columns is None else [name for name in columns if name in schema.names]
        every = list(range(self._file.num_row_groups)) if groups is None else list(groups)
        if self.large:
            self._check(every, names)
        table = self._file.read_row_groups(every, columns=names)
        return table.replace_schema_metadata(schema.metadata)

    def where(self, column: str, values: Sequence[str], columns: Sequence[str] | None = None) -> pa.Table:
        """The rows whose ``column`` has one of ``values``; groups without any are not read."""
        mask = pc.is_in(self.read([column])[column], value_set=pa.array(values)).combine_chunks()
        counts = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
        ends = np.cumsum(counts)
        masks = [mask.slice(int(end) - count, count) for end, count in zip(ends, counts, strict=True)]
        groups = [i for i, found in enumerate(masks) if found.true_count]
        table = self.read(columns, groups)
        return table.filter(pa.chunked_array([masks[i] for i in groups], type=pa.bool_()))

    def _footer(self, size: int) -> memoryview:
        length = int.from_bytes(self._get(max(0, size - _TAIL), size)[:4], "little")
        if not 0 < length <= size - _TAIL:
            raise OSError("it has no footer")
        return self._get(size - _TAIL - length, size)

    def _check(self, groups: Sequence[int], names: Sequence[str]) -> None:
        """Read the chunks and compare them with their digests."""
        metadata = self._file.metadata
        told = json.loads(metadata.metadata[_CHUNKS])
        wanted = {name: self._file.schema_arrow.names.index(name) for name in names}
        for group in groups:
            for name, index in wanted.items():
                if (group, index) not in self._checked:
                    if _digest(self._get(*_extent(metadata, group, index))) != told[group][index]:
                        raise OSError(f"its column {name} is not what was written")
                    self._checked.add((group, index))

    def _get(self, start: int, end: int) -> memoryview:
        """Read these bytes of the file to their place."""
        view = self._bytes.data[start:end]
        self._source.seek(start)
        if _read_whole(self._source, view) != len(view):
            raise OSError("it ends too early")
        return view


def _read_whole(source: IO[bytes], view: memoryview) -> int:
    done = 0
    while done < len(view):
        got = source.readinto(view[done:])  # type: ignore[attr-defined]  # all binary files have it
        if not got:
            break
        done += got
    return done


def _written(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _with_digests(data: bytes, schema: pa.Schema) -> tuple[bytes, str]:
    """The same file with a footer that has a digest of every column chunk, [row group][column]."""
    metadata = pq.read_metadata(pa.BufferReader(data))
    chunks = [
        [_digest(memoryview(data)[slice(*_extent(metadata, group, column))]) for column in range(metadata.num_columns)]
        for group in range(metadata.num_row_groups)
    ]
    told = {**(schema.metadata or {}), _CHUNKS: json.dumps(chunks).encode()}
    empty = io.BytesIO()
    with pq.ParquetWriter(empty, schema.with_metadata(told)):
        pass  # a footer without row groups, to which those of the data are added
    footer = pq.read_metadata(io.BytesIO(empty.getvalue()))
    footer.append_row_groups(metadata)
    alone = io.BytesIO()
    footer.write_metadata_file(alone)
    kept, tail = data[: len(data) - _TAIL - metadata.serialized_size], alone.getvalue()[4:]  # without its magic word
    return kept + tail, f"footer-{_digest(tail)}"


def _extent(metadata: pq.FileMetaData, group: int, column: int) -> tuple[int, int]:
    """Where the pages of a column's chunk begin and end in the file."""
    chunk = metadata.row_group(group).column(column)
    pages = [chunk.data_page_offset, *([chunk.dictionary_page_offset] if chunk.has_dictionary_page else [])]
    return min(pages), min(pages) + chunk.total_compressed_size


def _digest(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
