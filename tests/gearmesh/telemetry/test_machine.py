"""What a benchmark reports about the machine."""

import os

from gearmesh.telemetry.machine import MachineWatch


def test_a_process_with_several_names_counts_once_and_under_all_of_them():
    watch = MachineWatch({"broker": os.getpid(), "other": os.getppid(), "frontend": os.getpid()})
    found = watch.stop()
    assert list(found["cpu_s"]) == ["broker + frontend", "other"]
