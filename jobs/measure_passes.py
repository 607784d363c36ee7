"""Write what the methods of a results folder cost, for ``raybench list methods``.

    python jobs/measure_passes.py results/baselines_mnist

writes ``raybench/resources/measured_passes.json`` of this checkout; commit it beside the rows.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from raybench import load_trials
from raybench.measured import FILE, measure_passes


def main(folder: str) -> None:
    """``folder`` is a results folder whose name is that of its spec in ``jobs/``."""
    found = measure_passes(load_trials(folder), f"jobs/{Path(folder).name}.yaml")
    FILE.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{len(found['methods'])} methods in {FILE}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(
            "measure_passes needs one results folder, as in: python jobs/measure_passes.py results/baselines_mnist"
        )
    main(sys.argv[1])
