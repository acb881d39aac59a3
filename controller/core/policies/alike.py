"""The next batch where all requests, or most, cost about the same: the first deadlines go together. Pure.

It is what `atc.py` does with a model without open dimensions.
Source of the constants: docs/design/policy.md, "Batches of unequal length".
"""

from bisect import bisect_left, bisect_right

from controller.core.policies.planned import Composed, Costs, PlannedBatch, Waiting, batch_of

PASS_GAIN = 1.02  # the first deadlines are passed over if the batch then earns more than this, per second
ALIKE = 1.5  # ratio of values up to which requests of one class are alike
NEAR = 0.5  # requests are near the longest if a row of theirs costs at least this share of what its own does
MOSTLY = 0.8  # share of all who could be in time, so many of which are near


def are_alike(usable: list[int], waiting: Waiting, costs: Costs) -> bool:
    """Whether all have one row and about one value, may share a batch, and are of one class, as their batch is."""
    place, kinds, values = waiting.places[usable[0]], waiting.kinds, waiting.values
    name = costs.classes[place]
    least = most = values[usable[0]]
    for i in usable:
        if costs.classes[waiting.places[i]] != name or waiting.rows[i] > 1:
            return False
        if kinds and kinds[i] != kinds[usable[0]]:
            return False
        place = costs.both(place, waiting.places[i])
        least, most = min(least, values[i]), max(most, values[i])
    return costs.classes[place] == name and most <= ALIKE * least


def near_the_longest(usable: list[int], waiting: Waiting, costs: Costs) -> list[int]:
    """Those who cost at least about half of what the longest does, if they are most of all; otherwise nobody."""
    if waiting.kinds:
        return []
    longest = waiting.places[usable[0]]
    least = most = waiting.values[usable[0]]
    for i in usable:
        if waiting.rows[i] > 1:
            return []
        longest = costs.both(longest, waiting.places[i])
        least, most = min(least, waiting.values[i]), max(most, waiting.values[i])
    floor_s = NEAR * costs.shares[longest]
    near = [i for i in usable if costs.shares[waiting.places[i]] >= floor_s]
    return near if len(near) >= MOSTLY * len(usable) and most * NEAR <= ALIKE * least else []


def use_of(batch: PlannedBatch, waiting: Waiting, costs: Costs) -> float:
    """What its members would take in full batches of their own, as a share of what the batch takes."""
    total_s = 0.0
    for i in batch.members:
        total_s += costs.shares[waiting.places[i]] * waiting.rows[i]
    return total_s / batch.length_s


def first_deadlines(usable: list[int], waiting: Waiting, costs: Costs) -> Composed:
    """As many of the first deadlines as are in time together, or a larger batch without some that earns more."""
    place = waiting.places[usable[0]]
    for i in usable:
        place = costs.both(place, waiting.places[i])
    table, lefts = costs.tables[place], [waiting.left_s[i] for i in usable]
    high = min(len(lefts), costs.limits[place])
    rows = low = max(1, min(high, bisect_right(table, lefts[0], 1, costs.limits[place] + 1) - 1))
    while low < high:
        more = (low + high + 1) // 2
        if len(lefts) - bisect_left(lefts, table[more]) >= more:
            low = more
        else:
            high = more - 1
    passed = 0
    if low * table[rows] > PASS_GAIN * rows * table[low]:
        rows, passed = low, bisect_left(lefts, table[low])
    batch = batch_of(usable[passed : passed + rows], waiting, costs)
    return Composed(batch, [], usable[:passed])
