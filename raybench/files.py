"""Files that a spec names: found by absolute path, identified by their content."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from raybench.errors import UserError

BLOCK = 2**20


def find_file(path: object, root: str | None, what: str) -> Path:
    """The absolute path of a file; a relative one is looked for in ``root`` first, then in the working directory.
    ``UserError`` where there is none; ``what`` says there whose file it is."""
    if not isinstance(path, str) or not path:
        raise UserError(f"{what} must be the path of a file, got {path!r}; write it as text")
    given = Path(path).expanduser()
    for place in [given] if root is None else [Path(root) / given, given]:
        if place.is_file():
            return place.resolve()
    raise UserError(f"{what} must be a file, got nothing at {given}; give an absolute path, or --data DIR")


def file_digest(path: Path) -> str:
    """Hex digest of the file's content, computed once per process."""
    try:
        found = path.stat()
    except OSError as error:
        raise UserError(f"{path} must be on every node, got {error.strerror}; copy it there") from error
    return _digest(path, found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _digest(path: Path, size: int, changed: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()[:32]


def check_digest(path: str, planned: object) -> None:
    """``UserError`` where the file is not the one that a problem was planned with."""
    found = file_digest(Path(path))
    if found != planned:
        raise UserError(
            f"{path} must be the same on every node and in every run, got digest {found} and {planned} in the plan; "
            "copy the driver's file there"
        )
