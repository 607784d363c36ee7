"""Progress that people like: one live bar per stage on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_EVERY_S = 10.0


class Stage:
    """One stage under way: counts rows, failures and the best distance so far."""

    def __init__(self, name: str, total: int, done: int) -> None:
        self.name = name
        self.total = total
        self.done = done
        self.failed = 0
        self.best: tuple[float, str] | None = None
        self.started = time.monotonic()
        self.ran = 0

    def take(self, row: Mapping[str, Any]) -> None:
        """Count a row."""
        self.done += 1
        self.ran += 1
        self.failed += row["status"] == "failed"
        distance = row.get("distance_validation")
        if row["status"] == "ok" and row["phase"] in ("search", "final") and distance is not None:
            candidate = (float(distance), str(row["method"]))
            self.best = candidate if self.best is None else min(self.best, candidate)

    @property
    def note(self) -> str:
        """Failures and the best so far."""
        parts = [f"{self.failed} failed"] if self.failed else []
        if self.best is not None:
            parts.append(f"best distance {self.best[0]:.4f} ({self.best[1]})")
        return ", ".join(parts)

    @property
    def left_s(self) -> float | None:
        """Seconds left at the pace so far."""
        if not self.ran:
            return None
        return (time.monotonic() - self.started) / self.ran * max(0, self.total - self.done)


class Reporter:
    """Prints stages and messages to ``stream`` (standard error): bars on a terminal, lines elsewhere."""

    def __init__(self, stream: TextIO | None = None, quiet: bool = False, verbose: bool = False) -> None:
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._verbose = verbose and not quiet
        self._console = Console(file=self._stream, highlight=False)
        self._progress: Progress | None = None
        self.now: Stage | None = None

    def say(self, text: str) -> None:
        """One line for people."""
        if not self._quiet:
            self._console.print(text, soft_wrap=True, markup=False)

    def _tell(self, stage: Stage, row: Mapping[str, Any]) -> None:
        """A trial that ended, where every one is to be told."""
        if self._verbose:
            self.say(f"{stage.name}: {ended_line(row)}")

    def doing(self) -> dict[str, Any]:
        """The stage under way; nothing before the first."""
        return {} if self.now is None else {"stage": self.now.name, "done": self.now.done, "total": self.now.total}

    @contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator[Any]:
        """Yields ``advance(row)``; ``done`` of ``total`` rows exist already."""
        stage = self.now = Stage(name, total, done)
        if self._quiet or not total:
            yield stage.take
        elif self._console.is_terminal:
            yield from self._bar(stage)
        else:
            yield from self._lines(stage)

    def _bar(self, stage: Stage) -> Iterator[Any]:
        columns = (
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self._console, transient=False) as progress:
            task = progress.add_task(stage.name, total=stage.total, completed=stage.done, note="")

            def advance(row: Mapping[str, Any]) -> None:
                stage.take(row)
                self._tell(stage, row)
                progress.update(task, completed=stage.done, note=stage.note)

            yield advance

    def _lines(self, stage: Stage) -> Iterator[Any]:
        last, told = time.monotonic(), 0

        def tell(pace: str = "") -> None:
            nonlocal last, told
            last, told = time.monotonic(), stage.ran
            note = f", {stage.note}" if stage.note else ""
            self.say(f"{stage.name}: {stage.done}/{stage.total}{note}{pace}")

        def advance(row: Mapping[str, Any]) -> None:
            stage.take(row)
            self._tell(stage, row)
            if stage.done == stage.total:
                tell()
            elif time.monotonic() - last >= PLAIN_EVERY_S:
                left = stage.left_s
                tell(f", about {left:.0f} s left" if left else "")

        if stage.done < stage.total:
            tell()
        yield advance
        if told < stage.ran:  # settings that share a row leave the count short of the total
            tell()


def ended_line(row: Mapping[str, Any]) -> str:
    """A trial that ended, in one line: what, how, and the seconds of unlearning."""
    cell = "/".join(str(row[k]) for k in ("dataset", "model", "scenario", "method") if row.get(k))
    seconds = "" if row.get("unlearn_s") is None else f" in {row['unlearn_s']:.3g} s"
    reason = f": {row['reason']}" if row.get("reason") else ""
    return f"{cell} seed {row.get('train_seed')}: {row['status']}{seconds}{reason} (trial {row['trial_id']})"


def bad_line(row: Mapping[str, Any]) -> str:
    """A trial that people must hear of, in one line."""
    cell = "/".join(str(row[k]) for k in ("dataset", "model", "scenario", "method") if row.get(k))
    where = f"seed {row['train_seed']} ({row['phase']}, trial {row['trial_id']})"
    return f"{row['status']}: {cell} {where}: {row.get('reason')}"
