"""Before a long run on a terminal: what would run is shown, and a person says yes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from raybench.forecast import look_ahead, plan_table
from raybench.run import Options

LONG_S = 600.0  # shorter runs just start


def confirmed(spec: str, settings: Sequence[str], options: Options) -> bool:
    """Whether to run. Shows the plan and asks where the run is estimated to take longer than ``LONG_S`` seconds.

    The estimate is in seconds of one device; on this machine ``--slots`` trials run at once. Nobody is asked where
    standard input or standard error is no terminal, or with ``--quiet``.
    """
    if options.quiet or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    report = look_ahead(spec, settings, options)
    at_once = 1 if options.serial else options.slots or os.cpu_count() or 1
    if report["estimate"]["seconds"] / at_once <= LONG_S:
        return True
    print(plan_table(report), file=sys.stderr)
    print("go on? [Y/n] (--yes does not ask) ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("", "y", "yes")
