"""What every plug-in of a kind keeps to, as checks over a registered name: the suites of this project's own tests, and
of ``raybench check-plugin`` for those of other people.

>>> from raybench.conformance import check
>>> [finding for finding in check("methods", "original") if finding.status == "broken"]
[]
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from raybench.conformance import datasets, methods, metrics, models, scenarios
from raybench.conformance.rules import Broken, Case, NotHere

__all__ = ["Broken", "Case", "Finding", "NotHere", "cases", "check"]

_SUITES = {
    "methods": methods.cases,
    "models": models.cases,
    "datasets": datasets.cases,
    "scenarios": scenarios.cases,
    "metrics": metrics.cases,
}


@dataclass(frozen=True)
class Finding:
    """The answer of one check: ``status`` is ok, broken or skipped; ``reason`` is empty where it is ok."""

    rule: str
    status: str
    reason: str = ""


def cases(kind: str, name: str) -> list[Case]:
    """The checks of the plug-in ``name`` of ``kind`` (``methods``, ``models``, ...), nothing run yet.

    Raises:
        raybench.errors.UserError: nothing is registered under the name.
    """
    return list(_SUITES[kind](name))


def check(kind: str, name: str) -> Iterator[Finding]:
    """Run the checks one by one. An exception of the plug-in is a broken rule with its type and text."""
    for case in cases(kind, name):
        try:
            case.run()
        except NotHere as reason:
            yield Finding(case.rule, "skipped", str(reason))
        except Broken as reason:
            yield Finding(case.rule, "broken", str(reason))
        except Exception as error:  # whatever somebody's code raises, the other rules are still worth a look
            yield Finding(case.rule, "broken", f"raises {type(error).__name__}: {' '.join(str(error).split())}")
        else:
            yield Finding(case.rule, "ok")
