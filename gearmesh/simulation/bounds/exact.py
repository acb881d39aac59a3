"""The best that any scheduler can do for a handful of requests, by trying every schedule. Pure.

All models count as resident. The search loses nothing: in some best schedule every batch starts as soon as its device
is free and its last member has arrived, so a schedule is a list of batches for each device.
"""

from collections.abc import Sequence
from functools import cache
from math import inf

from gearmesh.simulation.arrivals.loads import Trace
from gearmesh.simulation.parts import Scenario, SimModel
from gpu_worker.core.emulation import fits
from mesh.sizes import Extents, joint

REQUESTS_MAX = 10
TOLERANCE_S = 1e-9  # an end this much late counts as in time: simulated clocks add up floats


def exact(scenario: Scenario, trace: Trace) -> int:
    """The most requests that can be answered in time. Raises: ValueError if there are too many requests to try."""
    count = len(trace)
    if count > REQUESTS_MAX:
        raise ValueError(f"an exact search takes at most {REQUESTS_MAX} requests; got {count}")
    sets = _batches(scenario, trace)

    @cache
    def best(left: int, free: tuple[float, ...]) -> int:
        """The most requests of the set `left` (bits) that devices which are free at these times can still answer."""
        found = 0
        for members, duration_s, ready_s, due_s in sets:
            if members & ~left:
                continue
            for device in range(len(free)):
                if device and free[device] == free[device - 1]:
                    continue
                end_s = max(free[device], ready_s) + duration_s
                if end_s <= due_s + TOLERANCE_S:
                    after = tuple(sorted((*free[:device], end_s, *free[device + 1 :])))
                    found = max(found, members.bit_count() + best(left & ~members, after))
        return found

    return best((1 << count) - 1, (0.0,) * scenario.devices.count)


def _batches(scenario: Scenario, trace: Trace) -> list[tuple[int, float, float, float]]:
    """(members as bits, duration, arrival of the last member, earliest deadline) of every possible batch."""
    arrival, due = trace.time_s.tolist(), (trace.time_s + trace.slo_s).tolist()
    found = []
    for members in range(1, 1 << len(trace)):
        chosen = [i for i in range(len(trace)) if members >> i & 1]
        model = scenario.models[int(trace.model[chosen[0]])]
        rows = sum(int(trace.rows[i]) for i in chosen)
        if any(trace.model[i] != trace.model[chosen[0]] for i in chosen) or rows > model.batch_max:
            continue
        duration_s = _duration_s(model, rows, [tuple(trace.extents[i].tolist()) for i in chosen])
        ready_s, due_s = max(arrival[i] for i in chosen), min(due[i] for i in chosen)
        if ready_s + duration_s <= due_s + TOLERANCE_S:
            found.append((members, duration_s, ready_s, due_s))
    return found


def _duration_s(model: SimModel, rows: int, sizes: Sequence[Extents]) -> float:
    """The least duration of a batch of so many rows or more that holds requests of these sizes; inf: there is none."""
    opened = model.open
    if opened is None:
        return min(model.exec_s[rows:])
    if opened.exact and len(set(sizes)) > 1:
        return inf
    extents = opened.computed(joint(sizes)[: len(opened.dims)])
    batches = [batch for batch in range(rows, model.batch_max + 1) if fits(opened.times, batch, extents)]
    return min((opened.exec_s(batch, extents) for batch in batches), default=inf)
