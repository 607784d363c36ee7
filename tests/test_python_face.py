"""The package's face: ``raybench.run`` is a function and a module, in whatever order they are used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import raybench

CALL = "try: raybench.run({'nmae': 1})\nexcept UserError as error: print(error)\n"


@pytest.mark.parametrize("before", ["", "from raybench.run import Options\n", "import raybench.run as module\n"])
def test_run_can_be_called_again(before: str) -> None:
    code = f"import raybench\nfrom raybench.errors import UserError\n{before}{CALL * 2}from raybench.run import Options"
    env = {**os.environ, "PYTHONPATH": str(Path(raybench.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120, check=True
    )
    assert done.stdout.count("did you mean name?") == 2


def test_everything_exported_is_there_and_says_what_it_is() -> None:
    for name in set(raybench.__all__) - {"__version__"}:
        assert callable(getattr(raybench, name))
        assert getattr(raybench, name).__doc__
