"""The benchmark programs start. What they measure is in ``results/performance/``; they are too long for a test."""

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "jobs" / "benchmarks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))


def test_every_benchmark_imports_what_it_needs() -> None:
    program = f"import importlib; [importlib.import_module(name) for name in {NAMES!r}]"
    done = subprocess.run([sys.executable, "-c", program], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(NAMES) > 10
