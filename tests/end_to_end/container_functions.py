"""Functions that containers serve in tests: one that is good, and the bad habits of real ones. Needs numpy alone."""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

FLAG = Path(os.environ.get("FUNCTIONS_FLAG", "flag"))  # tells this process, among replicas, to behave badly
hoard = []


def hang():
    """Never returns."""
    while True:
        signal.pause()


def double(x):
    return x * 2


def who(x):
    return np.full_like(x, os.getpid())


def fragile(x):
    """Fails for negative rows, and whatever else the first value says."""
    order = int(x[0, 0])
    if order == -1:
        raise ValueError("minus one is not for me")
    if order == -2:
        return x[:-1]
    if order == -3:
        sys.exit(3)
    if order == -4:
        x[0, 0] = 0
    if order == -5:
        for i in range(1_000_000):
            sys.stdout.write(f"line {i}\n")
    if order == -6:
        return "nonsense"
    if order == -7:
        return {"z": x}
    if order == -8:
        return np.array([["a"] * 4] * len(x))
    if order == -9:
        os._exit(9)
    if order == -10:
        hang()
    if order == -11:
        hoard.append(np.ones(25 << 20, np.uint8))
    return x * 2


def slow(x):
    time.sleep(2.5)
    return x * 2


def stuck_if_flagged(x):
    """Hangs, once, in whichever replica finds the flag first."""
    try:
        FLAG.unlink()
    except FileNotFoundError:
        return x * 2
    sys.stdout.write("it hangs\n")
    sys.stdout.flush()
    hang()


def dies_if_flagged(x):
    """Dies in the middle of a batch, once, in whichever replica finds the flag first."""
    time.sleep(0.02)
    try:
        FLAG.unlink()
    except FileNotFoundError:
        return x * 2
    os._exit(1)


def add(a, b):
    return {"sum": a + b, "difference": a - b}


class Model:
    """Says by itself what it takes and gives, as scikit-learn's estimators do."""

    n_features_in_ = 3
    classes_ = np.array([0, 1])

    def predict(self, x):
        return (x.sum(axis=1) > 0).astype(np.int64)


model = Model()


def poisoned(x):
    """Raises, ends its process or is killed for rows that begin with -1, -2 and -3."""
    time.sleep(0.01)
    orders = {int(first) for first in x[:, 0]}
    if -1 in orders:
        raise ValueError(f"the rows were {x[:, 0].tolist()}")
    if -2 in orders:
        os._exit(9)
    if -3 in orders:
        os.kill(os.getpid(), signal.SIGSEGV)
    return x * 2
