"""Content-addressed store: safetensors beside a JSON record, whole entries only, both checked on every load.

An entry is a folder ``<root>/<kind>/<key[:2]>/<key>``; it appears by one rename, so readers see all of it or
none. Between separate clusters an entry may be written twice; the second writer finds it there and drops its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from raybench.errors import UserError


class ContentStore:
    """See the module docstring. ``root`` must be a folder that every process of a run can reach."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def probe(self) -> None:
        """Raise ``UserError`` unless entries can be written here."""
        try:
            scratch = self._scratch()
            (scratch / "probe").write_text("probe")
            shutil.rmtree(scratch)
        except OSError as error:
            raise UserError(
                f"the store must be a writable folder, got {self.root} ({error.strerror}); "
                "choose one with --store DIR or RAYBENCH_STORE"
            ) from error

    def has(self, kind: str, key: str) -> bool:
        """Whether a whole entry is there."""
        return (self._path(kind, key) / "record.json").is_file()

    def put(self, kind: str, key: str, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Write an entry (a no-op where the key exists)."""
        if self.has(kind, key):
            return
        target = self._path(kind, key)
        scratch: Path | None = None
        try:
            scratch = self._scratch()
            file = scratch / "tensors.safetensors"
            save_file({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, file)
            full = {**record, "sha256": _digest(file, record)}
            (scratch / "record.json").write_text(json.dumps(full, sort_keys=True, indent=1))
            for written in scratch.iterdir():
                _flush(written)
            if target.exists() and not self.has(kind, key):
                self._discard(target)  # what is left of an entry that lost its record
            target.parent.mkdir(parents=True, exist_ok=True)
            os.rename(scratch, target)  # fails when another writer was first: its entry is the same
        except OSError as error:
            if not self.has(kind, key):
                raise UserError(f"the store at {self.root} must take writes, got: {error}; free or mend it") from error
        finally:
            if scratch is not None:
                shutil.rmtree(scratch, ignore_errors=True)

    def keys(self, kind: str) -> set[str]:
        """The keys of all entries of a kind."""
        return {path.parent.name for path in (self.root / kind).glob("*/*/record.json")}

    def record(self, kind: str, key: str) -> dict[str, Any] | None:
        """The JSON record of an entry as it lies there (only ``get`` checks it), or None where there is no readable
        one."""
        try:
            record = json.loads((self._path(kind, key) / "record.json").read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        return record if isinstance(record, dict) else None

    def get(self, kind: str, key: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and record of an entry; None where there is none. A damaged entry is taken away and is None too:
        its content can always be made again from its key."""
        path = self._path(kind, key)
        record = self.record(kind, key)
        file = path / "tensors.safetensors"
        try:
            whole = record is not None and _digest(file, record) == record.get("sha256")
        except FileNotFoundError:
            whole = False
        if record is None or not whole:
            if path.exists():
                self._discard(path)
            return None
        # Cloned: views into the file are not aligned as torch's own memory is, which may change the last bit.
        return {name: t.clone() for name, t in load_file(file).items()}, record

    def _path(self, kind: str, key: str) -> Path:
        return self.root / kind / key[:2] / key

    def _discard(self, path: Path) -> None:
        """Take a damaged entry away in one step: nobody may find half of it."""
        aside = self._scratch()
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            os.rename(path, aside / "damaged")
        shutil.rmtree(aside, ignore_errors=True)

    def _scratch(self) -> Path:
        scratch = self.root / ".staging" / uuid.uuid4().hex
        scratch.mkdir(parents=True)
        return scratch


def _digest(file: Path, record: Mapping[str, Any]) -> str:
    """Of the tensors and of the record beside them (which cannot hold its own digest)."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
    digest.update(json.dumps({k: v for k, v in record.items() if k != "sha256"}, sort_keys=True).encode())
    return digest.hexdigest()


def _flush(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def state_of(model: torch.nn.Module) -> dict[str, Tensor]:
    """The state dict as separate CPU tensors."""
    return {name: t.detach().cpu().clone() for name, t in model.state_dict().items()}
