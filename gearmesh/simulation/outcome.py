"""What became of the requests of one simulated run, and the figures of it. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mesh.codes import AnswerStatus
from mesh.sizes import Extents

OK = AnswerStatus.OK
LONGEST = 0.05  # share of the requests that count as the longest


@dataclass(slots=True)
class Outcome:
    """What became of every request, in the order of arrival. Lists have one entry per request."""

    slo_s: list[float] = field(default_factory=list)
    arrived_s: list[float] = field(default_factory=list)
    status: list[str | None] = field(default_factory=list)  # an AnswerStatus; None: not answered yet
    latency_s: list[float] = field(default_factory=list)  # from arrival to the answer
    batch: list[int] = field(default_factory=list)  # size of the batch that answered it, 0 for none
    heard: list[int] = field(default_factory=list)  # outputs and refusals that came for it
    model: list[int] = field(default_factory=list)
    cold: list[bool] = field(default_factory=list)  # its model was nowhere when it arrived
    extents: list[Extents] = field(default_factory=list)  # in its model's open dimensions
    asked: int = 0  # elements of the requests in all batches of models with open dimensions: rows x extents
    computed: int = 0  # elements that EXEC computed for them, padding included
    busy_s: float = 0.0  # EXEC time, of all devices
    load_s: float = 0.0  # LOAD time, of all devices
    ends_s: float = 0.0  # when the last answer was given

    def in_time(self, i: int) -> bool:
        """The request was served within its SLO."""
        return self.status[i] == OK and self.latency_s[i] <= self.slo_s[i] + 1e-9

    def record(self, policy: str, seed: int, devices: int, seconds: float) -> dict[str, Any]:
        """One line of the results; with `q1` to `q4`, `longest` and `padding` if models have open dimensions."""
        offered = len(self.status)
        good = sum(map(self.in_time, range(offered)))
        told = list(zip(self.status, self.latency_s, strict=True))
        answered = sorted(latency for status, latency in told if status == OK)
        refused = sorted(latency for status, latency in told if status == AnswerStatus.REJECTED)
        batches = [size for size in self.batch if size]
        device_s = devices * max(self.ends_s, 1e-9)
        record = {
            "policy": policy,
            "seed": seed,
            "offered": offered,
            "attainment": good / offered if offered else 1.0,
            "goodput_rps": good / seconds,
            "p99_ms": answered[min(len(answered) - 1, int(0.99 * len(answered)))] * 1e3 if answered else None,
            "rejected": len(refused),
            "cold_starts": sum(c and status == OK for c, status in zip(self.cold, self.status, strict=True)),
            "device_utilisation": self.busy_s / device_s,
            "load_utilisation": self.load_s / device_s,
            "mean_batch": len(batches) / sum([1 / size for size in batches], 0.0) if batches else 0.0,
            "rejected_after_ms_p50": refused[len(refused) // 2] * 1e3 if refused else None,
        }
        return record | self._by_size()

    def _by_size(self) -> dict[str, Any]:
        """What a record has if some models have open dimensions: attainment by size, and the share of padding.

        Requests are ranked by their elements, and equal ones in the order of arrival.
        """
        sized = [i for i, extents in enumerate(self.extents) if extents]
        if not sized:
            return {}
        sized.sort(key=lambda i: math.prod(self.extents[i]))
        count = len(sized)
        parts = [sized[count * k // 4 : count * (k + 1) // 4] for k in range(4)]
        longest = sized[count - max(1, round(LONGEST * count)) :]
        return {
            **{f"q{number}": self._attained(part) for number, part in enumerate(parts, 1)},
            "longest": self._attained(longest),
            "padding": 1 - self.asked / self.computed if self.computed else 0.0,
        }

    def _attained(self, requests: Sequence[int]) -> float | None:
        """The share of these that were served in time; None if there are none."""
        return sum(map(self.in_time, requests)) / len(requests) if requests else None
