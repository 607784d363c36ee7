"""Where results and store live: whole files only, durable before they are visible, on a disk or in an object store.

On a disk, local or mounted, files are staged outside the folder that readers list (``.staging/``), flushed, and moved
in by an atomic replace, because a half-written file inside it breaks other readers (pandas, duckdb, polars globs). An
object store has atomic PUTs instead (``raybench.bucket``).
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Protocol

from raybench.bucket import Bucket
from raybench.errors import StorageError, UserError

STAGING = ".staging"
_STALE_S = 3600.0  # a staged file this old belongs to a writer that died


class Folder(Protocol):
    """What all that a run keeps needs of a place. Names are relative, with ``/``.

    Trouble with the place itself is a ``StorageError``, one line; only a missing file is ``FileNotFoundError``.
    """

    def names(self, sub: str) -> list[str]:
        """Sorted names ``sub/<file>`` of the visible Parquet files in ``sub`` (empty when there is no such folder)."""

    def files(self, sub: str) -> list[str]:
        """Sorted names of all files below ``sub``, at any depth."""

    def has(self, name: str) -> bool:
        """Whether there is such a file."""

    def open(self, name: str) -> IO[bytes]:
        """The file, open for reading; ``FileNotFoundError`` when it is gone."""

    def put(self, name: str, data: bytes) -> None:
        """Write the whole file or nothing, durably."""

    def delete(self, name: str) -> None:
        """Remove the file; no error when it is gone already."""

    def exists(self) -> bool:
        """Whether the folder itself is there (in an object store: anything below the prefix)."""

    def prepare(self, what: str, option: str) -> None:
        """Create the folder and prove with a real write that it can be written. ``what`` and ``option`` are for the
        message: what it is for, and how to give another one."""

    def guard(self) -> contextlib.AbstractContextManager[None]:
        """Mutual exclusion between processes of this host where the place offers it."""


def open_folder(where: str | os.PathLike[str]) -> LocalFolder | Bucket:
    """The folder at a path or an object store's URL (``s3://bucket/prefix``)."""
    text = os.fspath(where)
    return Bucket(text) if is_url(text) else LocalFolder(Path(text))


def is_url(where: str) -> bool:
    """Whether this names an object store rather than a path."""
    return "://" in where


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
        except OSError as error:
            raise _refused(self.path / sub, "be readable", error) from error
        return sorted(f"{sub}/{name}" for name in found if name.endswith(".parquet") and name[0] not in "._")

    def files(self, sub: str) -> list[str]:
        return sorted(path.relative_to(self.path).as_posix() for path in (self.path / sub).rglob("*") if path.is_file())

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def open(self, name: str) -> IO[bytes]:
        try:
            return (self.path / name).open("rb")
        except FileNotFoundError:
            raise
        except NotADirectoryError as error:
            raise FileNotFoundError(str(self.path / name)) from error
        except OSError as error:
            raise _refused(self.path / name, "be a readable file", error) from error

    def put(self, name: str, data: bytes) -> None:
        try:
            self._put(name, data)
        except OSError as error:
            raise _refused(self.path, "take writes", error) from error

    def _put(self, name: str, data: bytes) -> None:
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
        try:
            (self.path / name).unlink()
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            raise _refused(self.path / name, "let itself be deleted", error) from error

    def prepare(self, what: str, option: str) -> None:
        # Access bits say nothing for root or a read-only mount: only a write tells.
        probe = f"{STAGING}/probe-{uuid.uuid4().hex}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._put(probe, b"probe")
            self.delete(probe)
            for staged in (self.path / STAGING).glob("*.part"):
                with contextlib.suppress(FileNotFoundError):  # its writer has just moved it in
                    if time.time() - staged.stat().st_mtime > _STALE_S:
                        staged.unlink()
        except OSError as error:
            raise StorageError(
                f"the {what} must be writable, got {self.path} ({error.strerror or error}); "
                f"give another one with {option}, or mend its permissions"
            ) from error

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        (self.path / STAGING).mkdir(parents=True, exist_ok=True)
        with (self.path / STAGING / "guard").open("ab") as file:
            _flock(file.fileno())
            yield  # closing the file, or the death of this process, frees it


def _refused(where: Path, what: str, error: OSError) -> StorageError:
    return StorageError(f"{where} must {what}, got {error.strerror or error}; make room there or mend its permissions")


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
