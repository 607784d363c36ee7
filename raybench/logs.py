"""Structured logs: ``logs/<node>-<pid>.jsonl`` in the results folder, one JSON object a line, found by trial id.

Python's own logging underneath (logger ``raybench``): an application may attach handlers of its own. Rows are the
truth; a log tells what no row can, such as which process a trial began in and never came back from.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
from pathlib import Path
from typing import Any

FOLDER = "logs"
LOGGER = logging.getLogger("raybench")
LOGGER.setLevel(logging.INFO)
LOGGER.addHandler(logging.NullHandler())  # without a file nothing is printed in its place


def log_event(event: str, trial_id: str, *, error: BaseException | None = None, **fields: Any) -> None:
    """One line about a trial; ``error`` adds its traceback and makes it a warning. Never called on the clock."""
    level = logging.INFO if error is None else logging.WARNING
    LOGGER.log(level, event, exc_info=error, extra={"trial_id": trial_id, "fields": fields})


def open_log(folder: str | None, node: str) -> None:
    """Log of this process below ``folder`` (None: none) from now on. The file appears with its first line."""
    for handler in list(LOGGER.handlers):
        if isinstance(handler, _Lines):
            LOGGER.removeHandler(handler)
    if folder is not None:
        LOGGER.addHandler(_Lines(Path(folder) / f"{node}-{os.getpid()}.jsonl", node))


class _Lines(logging.Handler):
    """Appends to a file that is open only while a line is written: on network storage it is then seen at once."""

    def __init__(self, path: Path, node: str) -> None:
        super().__init__()
        self._path, self._node = path, node

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.write(self.format(record) + "\n")
        except OSError:  # a full disk ends the run where rows are written, with one line; logging reports it here
            self.handleError(record)

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "node": self._node,
            "pid": record.process,
            "event": record.getMessage(),
            "trial_id": getattr(record, "trial_id", None),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = logging.Formatter().formatException(record.exc_info)
        return json.dumps(line, default=str)
