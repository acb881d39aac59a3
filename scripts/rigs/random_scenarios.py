"""Scenarios drawn at random, to test policies beyond hand-made ones. Each number gives one scenario."""

import math
from typing import Any

import numpy as np

REQUESTS_MAX = 8000  # a scenario is cut after so many
WEIGHTS_MB = 100.0  # of every model; also the page size


def draw(number: int) -> dict[str, Any]:
    """The scenario of that number, as `parse_scenario` takes it. Devices start empty.

    At most 3 s; 1-8 devices that hold 0.1 to 1.5 times the models; 1-800 models; LOADs of 0.5-50 ms; SLO 15-300 ms;
    EXEC of one row takes at most a third of it. The rate is 0.3 to 2 times what the devices do without LOADs, in the
    largest batches that take at most half of the SLO: many of these loads cannot be met.
    """
    rng = np.random.default_rng([number, 800])

    def log(low: float, high: float) -> float:
        return float(np.exp(rng.uniform(math.log(low), math.log(high))))

    devices = int(rng.integers(1, 9))
    models = round(log(1, 800))
    load_ms, slo_ms = log(0.5, 50), log(15, 300)
    intercept_ms = min(log(0.3, 6), slo_ms / 6)
    slope_ms = min(intercept_ms * log(0.03, 1), slo_ms / 6)
    room = max(1, round(models * log(0.1, 1.5)))
    zipf, cv, gamma = rng.uniform(0, 1.2), rng.uniform(1, 4), rng.random() < 0.5
    factor, seconds = log(0.3, 2), rng.uniform(0.3, 3)
    batch = max(1, min(32, math.floor((slo_ms / 2 - intercept_ms) / slope_ms)))
    rate_rps = factor * devices * batch / (intercept_ms + slope_ms * batch) * 1e3
    return {
        "devices": {
            "count": devices, "memory_mb": room * WEIGHTS_MB, "page_mb": WEIGHTS_MB,
            "load_gb_per_s": WEIGHTS_MB / load_ms,
        },
        "models": {
            "count": models, "weights_mb": WEIGHTS_MB, "batch_max": 32,
            "exec_ms": {"intercept": intercept_ms, "slope": slope_ms},
        },
        "load": {
            "kind": "gamma" if gamma else "poisson", "rate_rps": rate_rps, "zipf": float(zipf), "slo_ms": slo_ms,
            "seconds": min(float(seconds), REQUESTS_MAX / rate_rps), **({"cv": float(cv)} if gamma else {}),
        },
    }  # fmt: skip
