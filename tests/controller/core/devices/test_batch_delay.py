"""controller/core/devices/batch_delay.py: which batches wait for more requests, and until when."""

import numpy as np
import pytest

from controller.core.devices.batch_delay import BatchDelay


def test_a_lone_client_is_never_waited_with() -> None:
    delay = BatchDelay(0.002)
    now = 0.0
    for _ in range(50):
        delay.arrived(now)
        assert delay.until(1, 8, now, now) is None
        delay.ended(now + 0.0005)
        now += 0.0007


def test_requests_that_come_now_and_then_are_not_waited_with() -> None:
    rng = np.random.default_rng(1)
    delay = BatchDelay(0.005)
    now = 0.0
    for _ in range(500):  # of many clients, who know nothing of each other
        now += rng.exponential(0.1)
        delay.arrived(now)
        assert delay.until(1, 64, now, now) is None
        now += 0.004
        delay.ended(now)


def test_expected_requests_are_waited_for_until_the_wait_is_over_or_all_are_there() -> None:
    delay = BatchDelay(0.002)
    for i in range(200):  # sixteen at a time, all of them answered together
        for j in range(16):
            delay.arrived(i * 0.01 + j * 0.0001)
        for _ in range(16):
            delay.ended(i * 0.01 + 0.008)
    delay.arrived(2.0)
    delay.arrived(2.0)
    assert delay.until(2, 8, 2.0, 2.0005) == pytest.approx(2.002)
    assert delay.until(8, 8, 2.0, 2.0005) is None
    assert delay.until(2, 8, 2.0, 2.0021) is None
    for _ in range(14):
        delay.arrived(2.001)
    assert delay.until(16, 32, 2.0, 2.001) is None  # nobody else is known


def test_who_is_alone_again_is_waited_with_once() -> None:
    delay = BatchDelay(0.05)
    now = 0.0
    for _ in range(100):  # sixteen at a time, all of them answered together
        for _ in range(16):
            delay.arrived(now)
            now += 0.0001
        now += 0.003
        for _ in range(16):
            delay.ended(now)
    waits = 0
    for _ in range(50):  # and then one, who asks again when it has its answer
        delay.arrived(now)
        until_s = delay.until(1, 64, now, now)
        if until_s is not None:
            waits += 1
            assert delay.until(1, 64, now, until_s) is None
            now = until_s
        delay.ended(now + 0.001)
        now += 0.0012
    assert waits == 1
