"""Errors that people caused and can mend: one line, exit code 2, never a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_NAMES = 30  # in a message, which is one line


class UserError(Exception):
    """Bad input. The message states the rule, the value that broke it, and the way out, in one line."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class StorageError(UserError):
    """The place of results or store does not do its part: full, gone, unreadable, access denied. It is the run's
    trouble and never a trial's, so it becomes no row: the run ends, and the same command goes on once it is mended."""


class MetricUnavailable(Exception):
    """A metric cannot be computed for this row; the text is the reason kept in the row's ``missing``."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known names that look most like ``name``, best first (empty when nothing is close)."""
    close = difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)
    likeness = [difflib.SequenceMatcher(None, other, name).ratio() for other in close]
    return [other for other, ratio in zip(close, likeness, strict=True) if ratio >= likeness[0] - 0.2]


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that nothing is registered under, with the nearest matches."""
    names = sorted(known)
    close = nearest(name, names)
    shown = names if len(names) <= MOST_NAMES else [*names[:MOST_NAMES], f"and {len(names) - MOST_NAMES} more"]
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(shown) or 'none'}"
    return UserError(f"{kind} must be a registered name, got {name!r}; {hint}")
