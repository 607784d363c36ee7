"""Ends a method that hangs without asking for data, and so never looks at the clock (``Clock.tick``) itself.

Two steps, because a hang may or may not still run Python. Past the limit a signal has ``TimeLimit`` raised where the
method is: loops and sleeping calls end there. What stays inside a foreign call all the same (a kernel that never ends,
a deadlock between threads) is given up with its process. Seconds off the clock never count.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from raybench.passes import Clock, TimeLimit

GRACE_S = 2.0  # a method that asks for data ends by itself, a moment earlier
END_S = 60.0  # after so many seconds more, or the limit's if these are fewer, the process is given up
EVERY_S = 0.2
SIGNAL = getattr(signal, "SIGUSR1", None)  # None on systems without it


class Watchdog:
    """Watches ``clock`` while it is open. ``give_up(reason)`` ends the process; without it the second step is left out.

    Only the main thread can be interrupted: started in another one, it does nothing.
    """

    def __init__(self, clock: Clock, give_up: Callable[[str], None] | None = None) -> None:
        self._clock = clock
        self._give_up = give_up
        self._over = threading.Event()
        self._before: Any = None
        self._watches = SIGNAL is not None and threading.current_thread() is threading.main_thread()
        if self._watches:
            assert SIGNAL is not None
            self._before = signal.signal(SIGNAL, self._interrupt)
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    @property
    def reason(self) -> str:
        """What the row says."""
        return f"ran past the time limit of {self._clock.limit_s:.0f} s without asking for data"

    def close(self) -> None:
        """Stop watching; may be called twice."""
        self._over.set()
        if self._watches:
            assert SIGNAL is not None
            self._watches = False
            signal.signal(SIGNAL, self._before)

    def _late_s(self) -> float:
        """Seconds past limit and grace; negative within them, and while the clock is stopped."""
        if self._over.is_set() or not self._clock.running:
            return -1.0
        return self._clock.elapsed() - self._clock.limit_s - GRACE_S

    def _watch(self) -> None:
        main = threading.main_thread().ident
        assert SIGNAL is not None
        assert main is not None
        # In CPython 3.11 a thread that is traced (coverage, a debugger) turns in its evaluation loop for ever while a
        # signal is pending that the main thread alone may take, and that one sits in a foreign call.
        sys.settrace(None)
        while not self._over.wait(EVERY_S):
            late = self._late_s()
            if late > min(END_S, self._clock.limit_s) and self._give_up is not None:
                self._give_up(f"{self.reason}, and could not be interrupted: its process was ended")
                return
            elif late > 0:
                signal.pthread_kill(main, SIGNAL)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """In the main thread, between two steps of Python: only here it is certain that the method still runs."""
        if self._late_s() > 0:
            raise TimeLimit(self.reason)
        if callable(self._before):
            self._before(number, frame)
