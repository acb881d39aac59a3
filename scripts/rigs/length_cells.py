"""The cells of study Q: kinds of lengths, arrivals, objectives and loads for one encoder on one device, as scenarios.

Load 1.0 is 1 / mean share; the share of a length is what a row costs in the best batch of its own length that takes no
longer than the objective: the least of l(b, s) / b. Objectives are multiples of what a lone longest request takes.
Source: docs/design/README.md, "Studies".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gearmesh.simulation.scenario import Scenario, parse_scenario

COSTS = ("h100", "cpu")
ARRIVALS: dict[str, dict[str, Any]] = {"Poisson": {"kind": "poisson"}, "CV 3": {"kind": "gamma", "cv": 3}}
OBJECTIVES: dict[str, tuple[float, ...]] = {"2x": (2,), "4x": (4,), "10x": (10,), "mixed": (2, 4, 10)}
LOADS = (0.5, 0.7, 1.0, 1.3, 2.0)
SHORT = {"kind": "lognormal", "median": 9, "sigma": 0.6, "least": 2, "most": 64}
PASSAGES = {"kind": "lognormal", "median": 80, "sigma": 0.8, "least": 8, "most": 512}
LENGTHS: dict[str, dict[str, Any]] = {
    "short": SHORT,
    "mix": {"kind": "mix", "of": [{"share": 0.8, **SHORT}, {"share": 0.2, **PASSAGES}]},
    "passages": PASSAGES,
    "uniform": {"kind": "uniform", "least": 8, "most": 512},
    "two-point": {"kind": "choice", "values": [16, 512], "shares": [0.8, 0.2]},
}
BATCH_MAX = 32
SAMPLE = 20_000  # lengths of which the mean share is taken


@dataclass(frozen=True, slots=True)
class LengthCell:
    """One cell; all requests are due within some multiple of what the longest takes alone."""

    cost: str
    lengths: str
    arrivals: str
    objective: str
    load: float

    @property
    def most(self) -> int:
        """The greatest length."""
        return 64 if self.lengths == "short" else 512

    def scenario(self, requests: int, *, edges: int | None = None, closed: bool = False) -> Scenario:
        """So many requests on average. `edges`: to which the device pads. `closed`: it pads all to the longest."""
        base = self._parsed({"rate_rps": 1.0, "slo_ms": 1.0}, edges, closed=False)
        opened = base.models[0].open
        assert opened is not None
        durations = np.array(
            [[opened.exec_s(b, (s,)) for s in range(1, self.most + 1)] for b in range(1, BATCH_MAX + 1)]
        )
        objectives = [factor * durations[0, -1] for factor in OBJECTIVES[self.objective]]
        shares = [mean_share(durations, objective, self._sample(base)) for objective in objectives]
        rate_rps = self.load / float(np.mean(shares))
        load = {
            **ARRIVALS[self.arrivals],
            "rate_rps": rate_rps,
            "seconds": requests / rate_rps,
            "slo_ms": [objective * 1e3 for objective in objectives],
        }
        return self._parsed(load, edges, closed)

    def _sample(self, base: Scenario) -> "np.ndarray[Any, np.dtype[np.int32]]":
        opened = base.models[0].open
        assert opened is not None
        assert opened.sizes is not None
        return opened.sizes.draw(SAMPLE, opened.dims, np.random.default_rng(0))[:, 0]

    def _parsed(self, load: Mapping[str, Any], edges: int | None, closed: bool) -> Scenario:
        model: dict[str, Any] = {
            "profile": f"encoder_{self.cost}", "dims": {"seq": [1, self.most]}, "batch_max": BATCH_MAX, "weights_mb": 1,
        }  # fmt: skip
        devices: dict[str, Any] = {"load_gb_per_s": 1e6, "load_fixed_ms": 0}  # the study knows no LOADs
        if edges is not None:
            devices["edges"] = edges
        mapping = {
            "devices": devices,
            "models": model,
            "load": {"kind": "poisson", "sizes": LENGTHS[self.lengths], **load},
        }
        found = parse_scenario(mapping, "lengths", Path())
        return padded_to_the_longest(found) if closed else found


def padded_to_the_longest(found: Scenario) -> Scenario:
    """The same requests for a model without open dimensions, which takes as long as for the longest."""
    return replace(found, models=tuple(replace(model, open=None) for model in found.models))


def mean_share(durations: Any, objective_s: float, lengths: Any) -> float:
    """Mean seconds that a request costs in the best batch of its own length. `durations` [rows - 1, length - 1]."""
    rows = np.arange(1, len(durations) + 1)[:, None]
    share = np.where(durations <= objective_s, durations / rows, np.inf).min(axis=0)
    return float(share[lengths - 1].mean())


def all_cells(
    costs: Sequence[str] = COSTS,
    lengths: Sequence[str] = tuple(LENGTHS),
    arrivals: Sequence[str] = tuple(ARRIVALS),
    objectives: Sequence[str] = tuple(OBJECTIVES),
    loads: Sequence[float] = LOADS,
) -> list[LengthCell]:
    """The cells, in the order of these."""
    return [
        LengthCell(cost, kind, arriving, objective, load)
        for cost in costs
        for kind in lengths
        for arriving in arrivals
        for objective in objectives
        for load in loads
    ]
