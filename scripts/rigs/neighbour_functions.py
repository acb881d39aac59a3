"""Functions that containers serve beside bad neighbours; a batch that fails takes as long. Needs numpy alone.

Negative first values are the neighbours' own: what they mean stands with each function.
"""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

Rows = np.ndarray[Any, np.dtype[np.float32]]
RECORD = Path("leavers")  # lines of `began_s rows`, by time.monotonic(), of batches with rows of those that leave
EXEC_S = 0.05  # of a batch


def double(x: Rows) -> Rows:
    """Minds nothing."""
    time.sleep(EXEC_S)
    return x * 2


def double_and_record(x: Rows) -> Rows:
    """Records how many rows are negative."""
    began_s = time.monotonic()
    left = int((x[:, 0] < 0).sum())
    if left:
        with RECORD.open("a") as file:
            file.write(f"{began_s} {left}\n")
    time.sleep(EXEC_S)
    return x * 2


def double_or_raise(x: Rows) -> Rows:
    """Raises if any row is negative."""
    time.sleep(EXEC_S)
    if (x[:, 0] < 0).any():
        raise ValueError("a row is negative")
    return x * 2


def double_or_end(x: Rows) -> dict[str, Any]:
    """Ends the process if any row is negative; says which process it is, since there are several."""
    time.sleep(EXEC_S)
    if (x[:, 0] < 0).any():
        os._exit(9)
    return {"y": x * 2, "pid": np.full(len(x), os.getpid())}
