"""What became of the requests of one simulated run, and the figures of it. Pure."""

from dataclasses import dataclass, field
from typing import Any

from mesh.codes import AnswerStatus

OK = AnswerStatus.OK


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
    busy_s: float = 0.0  # EXEC time, of all devices
    load_s: float = 0.0  # LOAD time, of all devices
    ends_s: float = 0.0  # when the last answer was given

    def in_time(self, i: int) -> bool:
        """The request was served within its SLO."""
        return self.status[i] == OK and self.latency_s[i] <= self.slo_s[i] + 1e-9

    def record(self, policy: str, seed: int, devices: int, seconds: float) -> dict[str, Any]:
        """One line of the results."""
        offered = len(self.status)
        good = sum(map(self.in_time, range(offered)))
        told = list(zip(self.status, self.latency_s, strict=True))
        answered = sorted(latency for status, latency in told if status == OK)
        refused = sorted(latency for status, latency in told if status == AnswerStatus.REJECTED)
        batches = [size for size in self.batch if size]
        device_s = devices * max(self.ends_s, 1e-9)
        return {
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
            "mean_batch": len(batches) / sum(1 / size for size in batches) if batches else 0.0,
            "rejected_after_ms_p50": refused[len(refused) // 2] * 1e3 if refused else None,
        }
