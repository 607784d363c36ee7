"""A results folder: whole files only, durable before they are visible, on a disk or behind an fsspec URL.

Parts are staged outside the table's folder (``.staging/``) and moved in by an atomic replace, because a
half-written file inside it breaks other readers (pandas, duckdb, polars globs). On object storage one PUT is
atomic already.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol

from raybench.errors import UserError

STAGING = ".staging"
_STALE_S = 3600.0  # a staged file this old belongs to a writer that died


class Folder(Protocol):
    """What the store and the lock need of a place. Names are relative, with ``/``."""

    def names(self, sub: str) -> list[str]:
        """Sorted names ``sub/<file>`` of the visible files in ``sub`` (empty when there is no such folder)."""

    def open(self, name: str) -> IO[bytes]:
        """The file, open for reading; ``FileNotFoundError`` when it is gone."""

    def put(self, name: str, data: bytes) -> None:
        """Write the whole file or nothing, durably."""

    def delete(self, name: str) -> None:
        """Remove the file; no error when it is gone already."""

    def exists(self) -> bool:
        """Whether the folder itself is there."""

    def prepare(self) -> None:
        """Create the folder and prove with a real write that it can be written; ``UserError`` otherwise."""

    def guard(self) -> contextlib.AbstractContextManager[None]:
        """Mutual exclusion between processes of this host where the place offers it."""


def open_folder(where: str | os.PathLike[str]) -> LocalFolder | RemoteFolder:
    """The folder at a path or an fsspec URL (``s3://bucket/prefix``)."""
    text = os.fspath(where)
    return RemoteFolder(text) if "://" in text else LocalFolder(Path(text))


class LocalFolder:
    """A folder on a file system (local or network)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def exists(self) -> bool:
        return self.path.is_dir()

    def names(self, sub: str) -> list[str]:
        try:
            found = os.listdir(self.path / sub)
        except FileNotFoundError:
            return []
        except NotADirectoryError as error:
            raise UserError(f"a results folder must be a folder, got {self.path}; check the path") from error
        return sorted(f"{sub}/{name}" for name in found if name.endswith(".parquet") and name[0] not in "._")

    def open(self, name: str) -> IO[bytes]:
        return (self.path / name).open("rb")

    def put(self, name: str, data: bytes) -> None:
        target = self.path / name
        staged = self.path / STAGING / f"{uuid.uuid4().hex}.part"
        for parent in (staged.parent, target.parent):
            if not parent.is_dir():
                parent.mkdir(parents=True, exist_ok=True)
                _sync_folder(parent.parent)
        try:
            with staged.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(staged, target)
        except OSError:
            staged.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)

    def delete(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def prepare(self) -> None:
        # Access bits say nothing for root or a read-only mount: only a write tells.
        probe = f"{STAGING}/probe-{uuid.uuid4().hex}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.put(probe, b"probe")
            self.delete(probe)
            for staged in (self.path / STAGING).glob("*.part"):
                with contextlib.suppress(FileNotFoundError):  # its writer has just moved it in
                    if time.time() - staged.stat().st_mtime > _STALE_S:
                        staged.unlink()
        except OSError as error:
            raise _not_writable(str(self.path), error) from error

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        (self.path / STAGING).mkdir(parents=True, exist_ok=True)
        with (self.path / STAGING / "guard").open("ab") as file:
            _flock(file.fileno())
            yield  # closing the file, or the death of this process, frees it


class RemoteFolder:
    """A prefix behind an fsspec URL. One object is written by one request, so it is whole or absent."""

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url.rstrip("/")
        protocol = url.split("://", 1)[0]
        try:
            self._fs: Any = fsspec.filesystem(protocol)
        except (ImportError, ValueError) as error:
            raise UserError(
                f"a results URL must have a scheme that fsspec can open here, got {url} ({error}); "
                "install the package that adds it (s3fs, gcsfs, ...) or give a path"
            ) from error
        self._root = str(self._fs._strip_protocol(self.url))

    def __str__(self) -> str:
        return self.url

    def exists(self) -> bool:
        self._fs.invalidate_cache()
        return bool(self._fs.exists(self._root))

    def names(self, sub: str) -> list[str]:
        self._fs.invalidate_cache()
        try:
            found = self._fs.ls(f"{self._root}/{sub}", detail=False)
        except FileNotFoundError:
            return []
        names = [str(path).rsplit("/", 1)[-1] for path in found]
        return sorted(f"{sub}/{name}" for name in names if name.endswith(".parquet") and name[0] not in "._")

    def open(self, name: str) -> IO[bytes]:
        return io.BytesIO(self._fs.cat_file(f"{self._root}/{name}"))

    def put(self, name: str, data: bytes) -> None:
        self._fs.pipe_file(f"{self._root}/{name}", data)

    def delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(f"{self._root}/{name}")

    def prepare(self) -> None:
        probe = f"{STAGING}/probe-{uuid.uuid4().hex}"
        try:
            self.put(probe, b"probe")
            self.delete(probe)
        except OSError as error:
            raise _not_writable(self.url, error) from error

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        yield  # object stores have no locks; DriverLock reads its own entry back instead


def _not_writable(where: str, error: OSError) -> UserError:
    return UserError(
        f"the results folder must be writable, got {where} ({error.strerror or error}); "
        "give another one with --results, or mend its permissions"
    )


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _flock(handle: int) -> None:
    try:
        import fcntl
    except ImportError:  # not on this system: the lock is then best effort
        return
    with contextlib.suppress(OSError):  # a network mount without locks: likewise
        fcntl.flock(handle, fcntl.LOCK_EX)
