"""The watchdog: what hangs without asking for data is interrupted, and given up where it cannot be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from raybench import watchdog as module
from raybench.leaderboard.query import load_trials
from raybench.passes import Clock, TimeLimit
from raybench.watchdog import SIGNAL, Watchdog

pytestmark = pytest.mark.skipif(SIGNAL is None, reason="needs a system with SIGUSR1")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "GRACE_S", 0.1)
    monkeypatch.setattr(module, "EVERY_S", 0.02)


@pytest.fixture
def watch():
    """A running clock with a limit, and the watchdog of it."""
    opened = []

    def make(limit_s=0.1, give_up=None):
        clock = Clock(torch.device("cpu"), limit_s)
        clock.start()
        opened.append(Watchdog(clock, give_up))
        return clock, opened[-1]

    before = signal.getsignal(SIGNAL)
    yield make
    for dog in opened:
        dog.close()
    assert signal.getsignal(SIGNAL) is before


def sleeping():
    time.sleep(60)


def looping():
    while time.monotonic() > 0:
        pass


def locked():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


@pytest.mark.parametrize("hang", [sleeping, looping, locked])
def test_a_hang_in_python_is_interrupted_where_it_is(watch, hang):
    watch()
    began = time.monotonic()
    with pytest.raises(TimeLimit, match="ran past the time limit of 0 s without asking for data"):
        hang()
    assert time.monotonic() - began < 30


def test_seconds_off_the_clock_do_not_count(watch):
    clock, dog = watch()
    with clock.paused():
        time.sleep(0.5)
    dog.close()
    assert clock.elapsed() < clock.limit_s + module.GRACE_S


def test_a_closed_watchdog_lets_everything_pass(watch):
    _, dog = watch()
    dog.close()
    time.sleep(0.4)


def test_what_cannot_be_interrupted_is_given_up(watch):
    """The signal is blocked, as it is by a foreign call that never returns."""
    reasons = []
    watch(give_up=reasons.append)
    signal.pthread_sigmask(signal.SIG_BLOCK, {SIGNAL})
    try:
        deadline = time.monotonic() + 30
        while not reasons and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        signal.signal(SIGNAL, signal.SIG_IGN)  # drops what is pending
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {SIGNAL})
        signal.signal(SIGNAL, signal.SIG_DFL)
    assert len(reasons) == 1
    assert reasons[0].endswith("could not be interrupted: its process was ended")


DEADLOCK = """
import ctypes, os, sys, threading
import torch
from raybench import watchdog
from raybench.passes import Clock

def trace(*_):
    return trace

watchdog.GRACE_S, watchdog.EVERY_S = 0.1, 0.02
if sys.argv[1] == "traced":
    threading.settrace(trace)
clock = Clock(torch.device("cpu"), 0.1)
clock.start()
watchdog.Watchdog(clock, lambda reason: os._exit(7))
library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(128)
library.pthread_mutex_lock(mutex)
library.pthread_mutex_lock(mutex)
"""


@pytest.mark.parametrize("way", ["plain", "traced"])
def test_a_foreign_call_that_never_returns_ends_with_its_process(way):
    """In a process that is measured by coverage too, where threads are traced."""
    assert subprocess.run([sys.executable, "-c", DEADLOCK, way], timeout=60, check=False).returncode == 7


def test_in_another_thread_it_does_nothing():
    made = []
    thread = threading.Thread(target=lambda: made.append(Watchdog(Clock(torch.device("cpu"), 0.1))))
    before = signal.getsignal(SIGNAL)
    thread.start()
    thread.join()
    assert signal.getsignal(SIGNAL) is before
    made[0].close()


HANGER = '''
import signal, time
from dataclasses import dataclass
from raybench.registry import METHODS


@dataclass(frozen=True)
class HangerHparams:
    deaf: bool = False
    """Block the signal too."""


@METHODS.register("hanger", hparams=HangerHparams, identity=True)
def hanger(task, hp):
    """Wait for ever."""
    if hp.deaf:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    while True:
        time.sleep(3600.0)
'''


def test_serial_a_hang_is_a_row_and_a_deaf_one_ends_the_process_behind_its_row(tmp_path):
    """One process for each: the second command goes on behind the row of the first."""
    (tmp_path / "hanging_plugin.py").write_text(HANGER)
    (tmp_path / "spec.yaml").write_text(
        "{name: hanging, plugins: [hanging_plugin], seeds: {train: [0]}, gold_seeds: 1, recipe: {epochs: 1},\n"
        "time_limit: 1, problems: [{dataset: digits, models: [mlp], scenarios: [{class: {classes: [0]}}]}],\n"
        "methods: [{name: hanger, variant: deaf, hparams: {deaf: true}}, {name: hanger, variant: plain}]}"
    )
    command = [sys.executable, "-m", "raybench", "run", "spec.yaml", "--serial", "--results", "out", "--store", "store"]
    paths = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH"), os.getcwd()]))
    codes = []
    for _ in range(2):
        done = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=500
        )
        codes.append((done.returncode, "its row is kept" in done.stderr))
    assert codes == [(1, True), (1, False)], done.stderr
    rows = load_trials(tmp_path / "out").set_index("variant")
    assert set(rows.loc[["deaf", "plain"], "status"]) == {"timeout"}
    assert rows.loc["plain", "reason"] == "ran past the time limit of 1 s without asking for data"
    assert rows.loc["deaf", "reason"].endswith("and could not be interrupted: its process was ended")
    assert 1.0 < rows.loc["plain", "unlearn_s"] < 60.0
