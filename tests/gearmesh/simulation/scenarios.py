"""Scenarios for tests, and hand-written traces."""

from pathlib import Path
from typing import Any

import numpy as np

from gearmesh.simulation.arrivals.loads import Trace
from gearmesh.simulation.scenario import Scenario, parse_scenario

HERE = Path(__file__).parent
LINE = {"intercept": 2.0, "slope": 1.0}


def mapping(**changes: dict[str, Any]) -> dict[str, Any]:
    """A small scenario as a mapping from TOML. `changes`: tables to be merged in."""
    base: dict[str, Any] = {
        "devices": {"count": 1, "memory_mb": 1000, "load_gb_per_s": 50},
        "models": {"count": 4, "weights_mb": 50, "batch_max": 8, "exec_ms": dict(LINE)},
        "load": {"kind": "poisson", "rate_rps": 300, "slo_ms": 40, "seconds": 0.5},
    }
    for table, values in changes.items():
        if isinstance(values, dict):
            merged = {**base.get(table, {}), **values}
            base[table] = {key: value for key, value in merged.items() if value is not None}
        else:
            base[table] = values
    return base


def scenario(folder: Path = HERE, **changes: Any) -> Scenario:
    """The scenario of `mapping`."""
    return parse_scenario(mapping(**changes), "test", folder)


def trace(time_s: Any, slo_s: Any, model: Any = None, extents: Any = None) -> Trace:
    """Requests of one row and weight 1. `extents` [requests, dimensions]."""
    times = np.asarray(time_s, float)
    ones = np.ones(len(times))
    models = np.zeros(len(times), np.int32) if model is None else np.asarray(model, np.int32)
    sizes = np.zeros((len(times), 2), np.int32)
    if extents is not None:
        given = np.asarray(extents, np.int32).reshape(len(times), -1)
        sizes[:, : given.shape[1]] = given
    return Trace(times, models, ones * np.asarray(slo_s, float), ones, ones.astype(np.int32), sizes)
