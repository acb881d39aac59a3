"""Rules that batch requests of unequal length on one device, apart from the scheduler: what others do. Pure.

Each takes the requests of a trace in the order of arrival and says which were answered in time. The device never idles
while somebody waits, and a batch is padded to the longest row in it.
Source: rules b and c of study Q (docs/design/README.md, "Studies").
"""

from bisect import insort
from collections.abc import Callable, Sequence

Cost = Callable[[int, int], float]  # seconds of so many rows of this length
Arrived = tuple[float, float, int]  # (arrival s, deadline s, length)


def longest_by_deadline(requests: Sequence[Arrived], cost: Cost, rows_max: int) -> list[bool]:
    """Earliest deadline first, as many as keep the first one's; who would be late alone is dropped."""
    answered = [False] * len(requests)
    waiting: list[tuple[float, int]] = []  # (deadline, index), sorted
    now, coming = 0.0, 0
    while coming < len(requests) or waiting:
        if not waiting:
            now = max(now, requests[coming][0])
        while coming < len(requests) and requests[coming][0] <= now:
            insort(waiting, (requests[coming][1], coming))
            coming += 1
        waiting = [(due, i) for due, i in waiting if now + cost(1, requests[i][2]) <= due]
        if not waiting:
            continue
        rows, longest, took = 0, 0, 0.0
        for _, i in waiting[:rows_max]:
            greatest = max(longest, requests[i][2])
            if now + cost(rows + 1, greatest) > waiting[0][0]:
                break
            rows, longest, took = rows + 1, greatest, cost(rows + 1, greatest)
        for _, i in waiting[:rows]:
            answered[i] = True
        del waiting[:rows]
        now += took
    return answered


def first_come(requests: Sequence[Arrived], cost: Cost, rows_max: int) -> list[bool]:
    """In the order of arrival, always as many as there are, up to `rows_max`; only who is late already is dropped."""
    answered = [False] * len(requests)
    now, coming = 0.0, 0
    waiting: list[int] = []
    while coming < len(requests) or waiting:
        if not waiting:
            now = max(now, requests[coming][0])
        while coming < len(requests) and requests[coming][0] <= now:
            waiting.append(coming)
            coming += 1
        waiting = [i for i in waiting if requests[i][1] > now]
        if not waiting:
            continue
        batch, waiting = waiting[:rows_max], waiting[rows_max:]
        now += cost(len(batch), max(requests[i][2] for i in batch))
        for i in batch:
            answered[i] = now <= requests[i][1]
    return answered
