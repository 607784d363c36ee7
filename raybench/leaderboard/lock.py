"""One driver per results folder: ``DIR/driver.lock``, kept alive by a heartbeat.

A second driver is refused with the holder's name. A holder that died on this host is replaced at once, one on
another host when its heartbeat stands still for ``lapse_s`` seconds of *our* clock (clocks of hosts differ).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from raybench.errors import StorageError, UserError
from raybench.folder import Folder, LocalFolder, open_folder

NAME = "driver.lock"
LAPSE_S = 30.0  # silence after which a driver on another host counts as dead


def process_start(pid: int) -> str | None:
    """When process ``pid`` of this host started, in the system's own spelling; ``None`` if it is not running.

    A process id alone is not enough: ids are used again.
    """
    if Path("/proc/self/stat").exists():
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None
        fields = stat.rsplit(")", 1)[1].split()  # the command before it may hold spaces and brackets
        return None if fields[0] in "ZX" else fields[19]  # zombies are dead; field 22 of the line is starttime
    found = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def _place() -> str:
    """What must be equal for a process id to mean the same: host, boot and container."""
    parts = [socket.gethostname()]
    boot = Path("/proc/sys/kernel/random/boot_id")
    if boot.exists():
        parts += [boot.read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


class DriverLock:
    """Context manager around a run. ``UserError`` when another driver holds the folder.

    Args:
        directory: the results folder (path or URL); it is created if need be.
        command: what this driver does, for the other one's message.
        lapse_s: silence after which a driver on another host counts as dead, in seconds.
        beat_s: seconds between heartbeats; default a sixth of ``lapse_s``.
        on_wait: gets one line of text while the heartbeat of another host is watched.

    ``doing``, a function that may be set later, is asked at every heartbeat what to tell ``raybench status``.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        command: str | None = None,
        lapse_s: float = LAPSE_S,
        beat_s: float | None = None,
        on_wait: Callable[[str], None] | None = None,
    ) -> None:
        self.folder = open_folder(directory)
        self.command = " ".join(sys.argv) if command is None else command
        self.lapse_s = lapse_s
        self.beat_s = lapse_s / 6 if beat_s is None else beat_s
        self.on_wait = on_wait
        self.doing: Callable[[], Mapping[str, Any]] = dict
        self._since = time.time()
        self._token = uuid.uuid4().hex
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._lost = False

    @property
    def lost(self) -> bool:
        """True when the lock is gone or another driver's (this process slept longer than the lapse)."""
        return self._lost

    def check(self) -> None:
        """``UserError`` if the lock was lost; a driver calls it now and then."""
        if self._lost:
            raise UserError(
                f"a results folder has one driver, and {self.folder}/{NAME} was deleted or taken over by another; "
                "stop here, and run the same command again once nobody else drives"
            )

    def acquire(self) -> None:
        """Take the lock; waits only while a heartbeat of another host is watched."""
        self.folder.prepare("results folder", "--results")
        watched: str | None = None
        since = 0.0
        while True:
            with self.folder.guard():
                holder = self._holder()
                lapsed = watched is not None and holder is not None and _beat(holder) == watched
                lapsed = lapsed and time.monotonic() - since >= self.lapse_s
                if holder is None or lapsed or _died(holder):
                    self.folder.put(NAME, self._entry())
                    break
            if holder["place"] == _place():
                raise self._refusal(holder)
            if watched is None:
                watched, since = _beat(holder), time.monotonic()
                if self.on_wait is not None:
                    self.on_wait(
                        f"{self.folder} was last driven by {name_of(holder)}; "
                        f"taking over unless its heartbeat is seen within {self.lapse_s:g} s"
                    )
            elif _beat(holder) != watched:
                raise self._refusal(holder)
            time.sleep(min(self.beat_s, self.lapse_s / 10))
        if not isinstance(self.folder, LocalFolder):
            time.sleep(min(1.0, self.beat_s))  # no locks there: of two writers the last one stands
        holder = self._holder()
        if holder is None or holder["token"] != self._token:
            raise self._refusal(holder or {})
        self._thread = threading.Thread(target=self._keep, name="raybench-driver-lock", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Give the lock back; a lock that another driver took over stays with it."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        with self.folder.guard():
            holder = self._holder()
            if holder is not None and holder["token"] == self._token:
                self.folder.delete(NAME)

    def __enter__(self) -> DriverLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.release()
        else:  # what ended the run is what people must hear, not that its storage cannot take the lock back either
            with contextlib.suppress(StorageError):
                self.release()

    def _entry(self) -> bytes:
        entry = {
            "host": socket.gethostname(),
            "place": _place(),
            "pid": os.getpid(),
            "start_time": process_start(os.getpid()),
            "heartbeat": time.time(),
            "since": self._since,
            "doing": dict(self.doing()),
            "command": self.command,
            "token": self._token,
        }
        return json.dumps(entry, indent=1).encode()

    def _holder(self) -> dict[str, Any] | None:
        return read_holder(self.folder)

    def _refusal(self, holder: dict[str, Any]) -> UserError:
        return UserError(
            f"a results folder has one driver, and {self.folder} is held by {name_of(holder)}; "
            "wait for it, stop it, or give another folder with --results"
        )

    def _keep(self) -> None:
        while not self._stop.wait(self.beat_s):
            try:
                with self.folder.guard():
                    holder = self._holder()
                    if holder is None or holder["token"] != self._token:
                        self._lost = True
                        return
                    self.folder.put(NAME, self._entry())
            except StorageError:
                continue  # a full or stalled disk: the next beat tries again, the rows' own write reports it


def read_holder(folder: Folder) -> dict[str, Any] | None:
    """What the lock of a results folder says of its driver; None without one. ``UserError`` where it is damaged."""
    try:
        with folder.open(NAME) as file:
            holder = json.load(file)
        holder["host"], holder["place"], holder["pid"], holder["token"], holder["heartbeat"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder}/{NAME} must be a lock that raybench wrote, it is damaged; "
            "delete it when no other driver uses this folder"
        ) from error
    return dict(holder)


def lives(holder: Mapping[str, Any], lapse_s: float = LAPSE_S) -> bool:
    """Whether this driver runs: its process is asked on its own host, elsewhere its last heartbeat is young."""
    if holder["place"] == _place():
        return not _died(holder)
    return time.time() - float(holder["heartbeat"]) < lapse_s


def _died(holder: Mapping[str, Any]) -> bool:
    return holder["place"] == _place() and process_start(holder["pid"]) != holder.get("start_time")


def _beat(holder: Mapping[str, Any]) -> str:
    return f"{holder['token']} {holder['heartbeat']}"


def name_of(holder: Mapping[str, Any]) -> str:
    """The driver as people know it."""
    if not holder:
        return "another driver"
    command = f" ({holder['command']})" if holder.get("command") else ""
    return f"process {holder['pid']} on {holder['host']}{command}"
