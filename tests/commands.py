"""What the tests of the command line share: a refusal in one line, and the real command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import raybench


def assert_refused(said: Any, *fragments: str) -> None:
    """Exit code 2, one line on standard error, no traceback, nothing on standard output."""
    assert said.code == 2, said
    assert said.err.count("\n") == 1, said.err
    assert said.err.endswith("\n")
    assert "Traceback" not in said.err
    assert "pydantic" not in said.err
    assert said.out == ""
    for fragment in fragments:
        assert fragment in said.err, said.err
    assert len(said.err) < 500, said.err


def python(*arguments: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(filter(None, (str(Path(raybench.__file__).parents[1]), os.environ.get("PYTHONPATH", ""))))
    full = {**os.environ, "PYTHONPATH": paths, **env}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=cwd, env=full, timeout=120, check=False
    )
