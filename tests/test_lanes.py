"""Lanes with different shares: never more than there is, and nobody waits for ever."""

from __future__ import annotations

import pytest

from raybench.lanes import Lanes


class Clock:
    seconds = 0.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def clock():
    return Clock()


def test_lanes_never_add_up_to_more_than_the_devices_or_the_slots(clock):
    lanes = Lanes(2, 5, now=clock)
    for number, share in enumerate((1.0, 0.5, 0.25, 0.25)):
        assert lanes.room(share)
        lanes.open(f"lane{number}", share)
    assert not lanes.room(1 / 16)
    lanes.close("lane1")
    assert lanes.room(0.5)
    lanes.open("lane4", 0.25)
    lanes.open("lane5", 1 / 16)
    assert not lanes.room(1 / 16)  # there is a piece of a GPU left, but no sixth slot
    assert lanes.share("lane0") == 1.0


def test_sixteen_sixteenths_are_one(clock):
    lanes = Lanes(1, 99, now=clock)
    for number in range(16):
        assert lanes.room(1 / 16)
        lanes.open(str(number), 1 / 16)
    assert not lanes.room(1 / 16)


def test_a_large_share_gets_room_after_a_while_and_small_ones_wait_then(clock):
    lanes = Lanes(1, 9, patience_s=60, now=clock)
    for lane in "abcd":
        lanes.open(lane, 0.25)
    assert not lanes.room(1.0)
    clock.seconds = 59
    assert not lanes.must_end("a")  # it goes on with trials of its own share
    clock.seconds = 61
    assert lanes.must_end("a")
    lanes.close("a")
    assert not lanes.room(0.25)  # what is free now is being saved
    for lane in "bcd":
        lanes.close(lane)
    assert lanes.room(1.0)
    lanes.open("large", 1.0)
    assert not lanes.must_end("large")
    assert not lanes.room(0.25)
    clock.seconds = 200
    assert lanes.must_end("large")  # and the other way round


def test_what_no_longer_waits_makes_nobody_end(clock):
    lanes = Lanes(1, 9, patience_s=60, now=clock)
    lanes.open("a", 0.75)
    assert not lanes.room(0.5)
    clock.seconds = 61
    lanes.served({0.75})
    assert not lanes.must_end("a")
    assert lanes.room(0.25)


def test_lanes_end_for_one_whose_worker_does_not_start(clock):
    """A half of each of two devices is free: together a whole one, but no device is."""
    lanes = Lanes(2, 9, patience_s=60, now=clock)
    for lane in "ab":
        lanes.open(lane, 0.5)
    assert lanes.room(1.0)
    lanes.open("whole", 1.0)
    for seconds in (0, 30, 61):
        clock.seconds = seconds
        lanes.without_worker({"whole", "gone"})
    assert lanes.must_end("a")
    lanes.close("a")
    assert not lanes.room(0.5)  # else a new half would take the device that is coming free
    lanes.without_worker(set())
    assert not lanes.must_end("b")
    lanes.close("whole")
    assert lanes.room(0.5)


def test_what_takes_no_gpu_need_not_end_for_what_waits_for_one(clock):
    lanes = Lanes(1, 4, patience_s=60, now=clock)
    for lane in "ab":
        assert lanes.room(0.5)
        lanes.open(lane, 0.5)
    assert not lanes.room(0.5)  # the GPU is full
    assert lanes.room(0.0)
    lanes.open("cpu", 0.0)
    clock.seconds = 61
    assert lanes.late() == {0.5}
    assert not lanes.must_end("cpu")
    assert lanes.room(0.0)
    lanes.open("other", 0.0)
    lanes.close("a")
    assert lanes.room(0.5)
    lanes.open("c", 0.5)
    assert not lanes.room(0.0)  # no fifth slot


def test_it_ends_where_it_takes_the_last_slot(clock):
    lanes = Lanes(1, 2, patience_s=60, now=clock)
    for lane in "ab":
        lanes.open(lane, 0.0)
    assert not lanes.room(0.5)
    clock.seconds = 61
    assert lanes.must_end("a")
    lanes.close("a")
    assert not lanes.room(0.0)
    assert lanes.room(0.5)


def test_pieces_of_two_devices_are_no_room_for_a_share_of_one(clock):
    lanes = Lanes(2, 16, patience_s=60, now=clock)
    for number in range(4):  # two on each: a fifth of each is left
        assert lanes.room(0.4)
        lanes.open(str(number), 0.4)
    assert not lanes.room(0.4)
    assert lanes.room(0.2)
    lanes.close("0")
    lanes.close("1")
    assert lanes.room(1.0)  # the fullest first: both were on one device
    assert not lanes.room(2.0)
    lanes.close("2")
    lanes.close("3")
    assert lanes.room(2.0)
    lanes.open("both", 2.0)
    assert not lanes.room(1 / 16)


def test_a_worker_that_does_not_come_holds_up_the_cpus_only_for_a_while(clock):
    """It may wait for a core of its node, or for a GPU that somebody else has."""
    lanes = Lanes(1, 9, patience_s=60, now=clock)
    lanes.open("gpu", 1.0)
    lanes.open("cpu", 0.0)
    for seconds, ends in ((0, False), (59, False), (60, True), (119, True), (120, False)):
        clock.seconds = seconds
        lanes.without_worker({"gpu"})
        assert lanes.must_end("cpu") == ends
        assert lanes.room(0.0) == (not ends)
