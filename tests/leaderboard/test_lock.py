from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from raybench.errors import UserError
from raybench.leaderboard.lock import NAME, DriverLock, process_start

HOLD = """
import sys, time
from raybench.leaderboard.lock import DriverLock
with DriverLock(sys.argv[1], command="raybench run first"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def _edit(path, **changes):
    entry = json.loads(path.read_text())
    path.write_text(json.dumps(entry | changes))


def test_a_live_holder_is_named_and_a_killed_one_replaced_at_once(tmp_path, holder):
    with pytest.raises(UserError) as caught:
        DriverLock(tmp_path).acquire()
    assert f"is held by process {holder.pid} on " in str(caught.value)
    assert "(raybench run first)" in str(caught.value)
    assert "another folder with --results" in str(caught.value)
    os.kill(holder.pid, signal.SIGKILL)
    # Not reaped yet: as a zombie the process is still listed.
    while process_start(holder.pid) is not None:
        time.sleep(0.01)
    start = time.monotonic()
    with DriverLock(tmp_path, command="second") as lock:
        assert time.monotonic() - start < 2
        entry = json.loads((tmp_path / NAME).read_text())
        assert (entry["pid"], entry["command"]) == (os.getpid(), "second")
        assert {"host", "start_time", "heartbeat"} <= set(entry)
        assert not lock.lost
    assert not (tmp_path / NAME).exists()


def test_a_process_id_that_was_used_again_is_no_holder(tmp_path, holder):
    _edit(tmp_path / NAME, start_time="1")
    with DriverLock(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()


def test_the_same_process_cannot_drive_twice(tmp_path):
    with DriverLock(tmp_path), pytest.raises(UserError, match=f"process {os.getpid()}"):
        DriverLock(tmp_path).acquire()
    with DriverLock(tmp_path):
        pass


def test_another_hosts_silence_is_waited_for_with_a_message(tmp_path):
    first = DriverLock(tmp_path, command="there", beat_s=60)
    first.acquire()
    # Heartbeats of a host whose clock is an hour ahead: only their standing still counts.
    _edit(tmp_path / NAME, host="far", place="far", pid=7, heartbeat=time.time() + 3600)
    told: list[str] = []
    start = time.monotonic()
    with DriverLock(tmp_path, lapse_s=0.6, on_wait=told.append):
        assert 0.6 <= time.monotonic() - start < 5
        assert len(told) == 1
        assert "process 7 on far (there)" in told[0]
        assert "within 0.6 s" in told[0]
    first.release()


def test_another_hosts_heartbeat_refuses(tmp_path):
    first = DriverLock(tmp_path, beat_s=60)
    first.acquire()
    path = tmp_path / NAME
    _edit(path, host="far", place="far")
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(0.1):
            entry = json.loads(path.read_text()) | {"heartbeat": time.time()}
            staged = tmp_path / "beat"
            staged.write_text(json.dumps(entry))
            os.replace(staged, path)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(UserError, match=r"is held by process .* on far"):
            DriverLock(tmp_path, lapse_s=5.0, beat_s=0.1).acquire()
    finally:
        stop.set()
        thread.join()
        first.release()


def test_heartbeats_are_written_and_a_lost_lock_is_noticed(tmp_path):
    lock = DriverLock(tmp_path, beat_s=0.05)
    lock.acquire()
    first = json.loads((tmp_path / NAME).read_text())["heartbeat"]
    deadline = time.monotonic() + 5
    while json.loads((tmp_path / NAME).read_text())["heartbeat"] == first:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    lock.check()
    (tmp_path / ".staging" / "other").write_text(json.dumps({"token": "other"} | _entry("far")))
    os.replace(tmp_path / ".staging" / "other", tmp_path / NAME)
    deadline = time.monotonic() + 5
    while not lock.lost:
        # A beat that was under way may have put our entry back once; the other driver's stands in the end.
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with pytest.raises(UserError, match="taken over by another"):
        lock.check()
    lock.release()
    assert json.loads((tmp_path / NAME).read_text())["token"] == "other"


def _entry(place: str) -> dict:
    return {"host": place, "place": place, "pid": 1, "heartbeat": 0.0, "start_time": "0", "command": ""}


def test_of_many_at_once_one_wins(tmp_path):
    code = """
import sys, time
from raybench.errors import UserError
from raybench.leaderboard.lock import DriverLock
while time.time() < float(sys.argv[2]):
    pass
try:
    DriverLock(sys.argv[1]).acquire()
    print("won", flush=True)
    sys.stdin.read()
except UserError:
    print("refused", flush=True)
"""
    # They all find the lock of a dead process, so they race for the takeover.
    start = process_start(os.getpid())
    with DriverLock(tmp_path):
        entry = json.loads((tmp_path / NAME).read_text())
    (tmp_path / NAME).write_text(json.dumps(entry | {"start_time": f"{start}0", "token": "dead"}))
    begin = str(time.time() + 2)
    command = [sys.executable, "-c", code, str(tmp_path), begin]
    drivers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    words = [driver.stdout.readline().strip() for driver in drivers if driver.stdout]
    for driver in drivers:
        driver.communicate("")
    assert sorted(words) == ["refused"] * 5 + ["won"]


def test_a_damaged_lock_is_explained(tmp_path):
    (tmp_path / NAME).write_text("{")
    with pytest.raises(UserError, match="is damaged; delete it when no other driver"):
        DriverLock(tmp_path).acquire()


def test_process_start():
    assert process_start(os.getpid()) == process_start(os.getpid())
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert process_start(child.pid) not in (None, process_start(os.getpid()))
    child.communicate(b"\n")
    assert process_start(child.pid) is None


def test_the_lock_works_on_an_object_store():
    pytest.importorskip("fsspec")
    with DriverLock("memory://bucket/locked", beat_s=0.05), pytest.raises(UserError, match="is held by process"):
        DriverLock("memory://bucket/locked", beat_s=0.05).acquire()
