"""Content-addressed store: safetensors beside a JSON record, whole entries only, both checked on every load.

An entry is ``<kind>/<key[:2]>/<key>/record.json`` and the file of tensors that it names. The record is written last, so
readers see a whole entry or none, on a disk and in an object store alike. The tensors' file is named after its content:
of two writers of one key neither spoils the other's, and the record that stands names its own.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from raybench.folder import open_folder

RECORD = "record.json"


class ContentStore:
    """See the module docstring. ``root``: a folder or URL that every process of a run can reach. Reads and writes that
    fail are a ``StorageError``."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.folder = open_folder(root)

    def probe(self) -> None:
        """Raise ``StorageError`` unless entries can be written here."""
        self.folder.prepare("store", "--store DIR or RAYBENCH_STORE")

    def has(self, kind: str, key: str) -> bool:
        """Whether a whole entry is there."""
        return self.folder.has(f"{_place(kind, key)}/{RECORD}")

    def put(self, kind: str, key: str, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Write an entry (a no-op where the key exists)."""
        if self.has(kind, key):
            return
        data = save({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()})
        full = {**record, "file": f"{hashlib.sha256(data).hexdigest()[:32]}.safetensors"}
        full["sha256"] = _digest(data, full)
        self.folder.put(f"{_place(kind, key)}/{full['file']}", data)
        self.folder.put(f"{_place(kind, key)}/{RECORD}", json.dumps(full, sort_keys=True, indent=1).encode())

    def drop(self, kind: str, key: str) -> None:
        """Remove an entry; no error where there is none. For what has served its purpose, such as checkpoints."""
        record = self.record(kind, key)
        self.folder.delete(f"{_place(kind, key)}/{RECORD}")
        if record is not None and "/" not in str(record.get("file", "/")):
            self.folder.delete(f"{_place(kind, key)}/{record['file']}")

    def keys(self, kind: str) -> set[str]:
        """The keys of all entries of a kind."""
        return {name.split("/")[-2] for name in self.folder.files(kind) if name.endswith(f"/{RECORD}")}

    def record(self, kind: str, key: str) -> dict[str, Any] | None:
        """The JSON record of an entry as it lies there (only ``get`` checks it), or None where there is no readable
        one."""
        try:
            with self.folder.open(f"{_place(kind, key)}/{RECORD}") as file:
                record = json.loads(file.read())
        except (FileNotFoundError, ValueError):
            return None
        return record if isinstance(record, dict) else None

    def get(self, kind: str, key: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and record of an entry; None where there is none. A damaged entry is taken away and is None too:
        its content can always be made again from its key."""
        record = self.record(kind, key)
        data = None if record is None else self._tensors(kind, key, record)
        if record is None or data is None or _digest(data, record) != record.get("sha256"):
            # Only the record: a writer may be between its two files, and tensors alone are no entry.
            self.folder.delete(f"{_place(kind, key)}/{RECORD}")
            return None
        # Cloned: views into the file are not aligned as torch's own memory is, which may change the last bit.
        return {name: t.clone() for name, t in load(data).items()}, record

    def _tensors(self, kind: str, key: str, record: Mapping[str, Any]) -> bytes | None:
        name = str(record.get("file", "tensors.safetensors"))  # what earlier versions wrote has one fixed name
        if "/" in name:
            return None
        try:
            with self.folder.open(f"{_place(kind, key)}/{name}") as file:
                return file.read()
        except FileNotFoundError:
            return None


def _place(kind: str, key: str) -> str:
    return f"{kind}/{key[:2]}/{key}"


def _digest(data: bytes, record: Mapping[str, Any]) -> str:
    """Of the tensors and of the record beside them (which cannot hold its own digest)."""
    digest = hashlib.sha256(data)
    digest.update(json.dumps({k: v for k, v in record.items() if k != "sha256"}, sort_keys=True).encode())
    return digest.hexdigest()


def state_of(model: torch.nn.Module) -> dict[str, Tensor]:
    """The state dict as separate CPU tensors."""
    return {name: t.detach().cpu().clone() for name, t in model.state_dict().items()}
