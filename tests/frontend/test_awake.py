"""frontend/awake.py: how long this thread has not slept."""

import os
import select
import threading
import time

import pytest

from frontend.awake import AwakeTime

LONG_S = 0.2


def nap() -> None:
    """This thread sleeps until nothing comes for a while."""
    reading, writing = os.pipe()
    select.select([reading], [], [], LONG_S)
    os.close(reading)
    os.close(writing)


def test_time_asleep_does_not_count() -> None:
    awake = AwakeTime()
    before, began_s = awake.seconds(), time.monotonic()
    nap()
    assert time.monotonic() - began_s >= LONG_S
    assert awake.seconds() - before < LONG_S / 2
    awake.close()


def test_time_that_it_runs_or_waits_for_a_processor_counts_also_where_another_thread_runs() -> None:
    awake = AwakeTime()
    ends = threading.Event()
    other = threading.Thread(target=ends.wait)
    other.start()
    before, began_s = awake.seconds(), time.monotonic()
    while time.monotonic() - began_s < LONG_S:
        pass
    assert awake.seconds() - before == pytest.approx(time.monotonic() - began_s, rel=0.3)
    ends.set()
    other.join()
    awake.close()


def test_without_the_systems_word_the_time_that_it_runs_is_known() -> None:
    awake = AwakeTime()
    awake.close()
    awake.close()
    before = awake.seconds()
    while awake.seconds() == before:
        pass
