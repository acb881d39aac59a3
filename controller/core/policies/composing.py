"""Which waiting requests of unequal extents go together, and in which order: the plan of one model on one device. Pure.

A batch takes as long as its greatest extents say, so a short request in a long batch costs nearly what a long one does.
The plan puts requests together that cost about the same, as far as their deadlines allow:

    1  who could not be in time even alone and first is left out
    2  order by (class, deadline); a class holds extents whose rows cost about the same in full batches of their own
    3  the cheapest partition of that order into batches of which each, if it ran first, had nobody late
    4  the batches in order of their first deadlines; where one would be late, that of the least value per second is put
       off (Moore, "An n job, one machine sequencing algorithm", 1968, with values)
    5  the batch with the first deadline runs next
    6  whom that batch holds without growing in its extents fills it up, at no more than a share of a full batch each
    7  who was put off joins it, if whoever is kept is still in time and it earns nearly what the batch does per second

Where objectives differ, steps 2 to 4 are done a second time with the earlier half of the deadlines apart from the later
one, and the plan that keeps more is taken. Where all cost about the same there is nothing to sort: the first deadlines
go together, as `atc.py` has it. Where most cost nearly what the longest does, and somebody is put off, such a batch of
these runs instead, if more of its time is of use (`alike.py`).
Source of the rule and of the constants: docs/design/policy.md, "Batches of unequal length".
"""

import heapq
import math

from controller.core.policies.alike import PASS_GAIN, are_alike, first_deadlines, near_the_longest, use_of
from controller.core.policies.planned import Composed, Costs, PlannedBatch, Waiting, batch_of

RESCUE = 0.5  # who was put off earns at least this share of what the batch that it joins earns, per second
SAME = 1e-9  # values that differ by this share at most are equal


def compose(waiting: Waiting, costs: Costs, *, hosts: int = 1, differ: bool = False) -> Composed | None:
    """The plan; None if nobody can be in time.

    `hosts`: devices that share the work. `differ`: the requests have different objectives.
    """
    places, rows, left_s, tables = waiting.places, waiting.rows, waiting.left_s, costs.tables
    usable = [i for i in range(len(places)) if tables[places[i]][rows[i]] <= left_s[i]]
    if not usable:
        return None
    alike = are_alike(usable, waiting, costs)
    if alike and not differ:
        return first_deadlines(usable, waiting, costs)
    batches = _partition(usable, waiting, costs)
    kept = _keep(batches, hosts)
    if differ and len(usable) > 2:
        middle = len(usable) // 2
        halves = _partition(usable[:middle], waiting, costs) + _partition(usable[middle:], waiting, costs)
        kept_of_halves = _keep(halves, hosts)
        if _is_better(kept_of_halves, kept):
            batches, kept = halves, kept_of_halves
    some_put_off = len(kept) < len(batches)
    if alike and some_put_off:
        return first_deadlines(usable, waiting, costs)
    plan = _filled(kept, usable, waiting, costs, hosts)
    if some_put_off:
        near = near_the_longest(usable, waiting, costs)
        if near:
            other = first_deadlines(near, waiting, costs)
            if use_of(other.first, waiting, costs) > PASS_GAIN * use_of(plan.first, waiting, costs):
                return other
    return plan


def _is_better(kept: list[PlannedBatch], others: list[PlannedBatch]) -> bool:
    """Whether these batches have more value than the others, or as much in less time."""
    value = value_others = length_s = length_others_s = 0.0
    for batch in kept:
        value += batch.value
        length_s += batch.length_s
    for batch in others:
        value_others += batch.value
        length_others_s += batch.length_s
    if abs(value - value_others) > SAME * value:
        return value > value_others
    return length_s < length_others_s


# -- steps 2 and 3 ----------------------------------------------------------------------------------------------------


def _partition(usable: list[int], waiting: Waiting, costs: Costs) -> list[PlannedBatch]:
    """The cheapest partition of the usable, in order of class and deadline, into batches with nobody late."""
    if costs.width or waiting.kinds:
        return _partition_joint(usable, waiting, costs)
    places, all_rows, all_left_s, classes = waiting.places, waiting.rows, waiting.left_s, costs.classes
    in_class: dict[int, list[int]] = {}
    for i in usable:
        in_class.setdefault(classes[places[i]], []).append(i)
    order: list[int] = []
    order_rows: list[int] = []
    order_left_s: list[float] = []
    cheapest_s = [0.0]  # by how many of the order: duration of their cheapest partition
    sizes = [0]  # by how many of the order: members of the last batch of that partition
    for name in sorted(in_class):
        members = in_class[name]
        place = max([places[i] for i in members])
        table, most = costs.tables[place], costs.most[place]
        for i in members:
            rows, left = all_rows[i], all_left_s[i]
            at = len(order)
            best, size = cheapest_s[at] + costs.tables[places[i]][rows], 1
            order.append(i)
            order_rows.append(rows)
            order_left_s.append(left)
            at -= 1
            while at >= 0:
                rows += order_rows[at]
                if rows > most:
                    break
                length_s = table[rows]
                if order_left_s[at] < left:
                    left = order_left_s[at]
                if length_s > left:
                    break
                if cheapest_s[at] + length_s < best:
                    best, size = cheapest_s[at] + length_s, len(order) - at
                at -= 1
            cheapest_s.append(best)
            sizes.append(size)
    return _batches(order, sizes, waiting, costs)


def _partition_joint(usable: list[int], waiting: Waiting, costs: Costs) -> list[PlannedBatch]:
    """As `_partition`, where there are two dimensions, or only requests of one kind share a batch."""
    places, kinds, classes = waiting.places, waiting.kinds, costs.classes
    if kinds:
        order = sorted(usable, key=lambda i: (classes[places[i]], kinds[i]))
    else:  # what costs the same may be high or wide
        order = sorted(usable, key=lambda i: (classes[places[i]], places[i]))
    cheapest_s, sizes = [0.0], [0]
    for count in range(1, len(order) + 1):
        last = order[count - 1]
        place, rows, left = places[last], waiting.rows[last], waiting.left_s[last]
        best, size = cheapest_s[count - 1] + costs.tables[place][rows], 1
        for at in range(count - 2, -1, -1):
            other = order[at]
            if kinds and kinds[other] != kinds[last]:
                break
            if places[other] != place:
                place = costs.both(place, places[other])
            rows += waiting.rows[other]
            if rows > costs.most[place]:
                break
            length_s = costs.tables[place][rows]
            left = min(left, waiting.left_s[other])
            if length_s > left:
                break
            if cheapest_s[at] + length_s < best:
                best, size = cheapest_s[at] + length_s, count - at
        cheapest_s.append(best)
        sizes.append(size)
    return _batches(order, sizes, waiting, costs)


def _batches(order: list[int], sizes: list[int], waiting: Waiting, costs: Costs) -> list[PlannedBatch]:
    """The batches of the partition. `sizes`: by how many of the order, the members of the last batch."""
    batches = []
    end = len(order)
    while end > 0:
        batches.append(batch_of(order[end - sizes[end] : end], waiting, costs))
        end -= sizes[end]
    return batches


# -- steps 4 to 7 -----------------------------------------------------------------------------------------------------


def _keep(batches: list[PlannedBatch], hosts: int) -> list[PlannedBatch]:
    """The batches that are kept, by their first deadlines: each is in time if they run in this order.

    Ties: the one that earns more per second is first.
    """
    order = sorted(batches, key=lambda batch: (batch.left_s, -batch.value / batch.length_s))
    worst: list[tuple[float, int]] = []  # heap of (value per second, index in the order), those kept so far
    put_off: set[int] = set()
    total_s = 0.0  # of those kept so far
    for at, batch in enumerate(order):
        heapq.heappush(worst, (batch.value / batch.length_s, at))
        before_s = total_s
        total_s += batch.length_s
        while len(worst) > 1 and before_s / hosts + batch.length_s > batch.left_s:
            _, gone = heapq.heappop(worst)
            put_off.add(gone)
            total_s -= order[gone].length_s
            if gone == at:
                break
            before_s -= order[gone].length_s
    return [batch for at, batch in enumerate(order) if at not in put_off]


def _filled(kept: list[PlannedBatch], usable: list[int], waiting: Waiting, costs: Costs, hosts: int) -> Composed:
    """The plan with its first batch filled up."""
    first, later = kept[0], kept[1:]
    planned_s = before_s = first.length_s
    room_s = math.inf  # by so much the first batch may grow, and the later ones are in time
    for batch in later:
        room_s = min(room_s, batch.left_s - before_s / hosts - batch.length_s)
        before_s += batch.length_s
    inside = set(first.members)
    _fill(first, [i for i in usable if i not in inside], waiting, costs)
    for batch in kept:
        inside.update(batch.members)
    if len(inside) < len(usable):
        room_s -= first.length_s - planned_s
        _rescue(first, [i for i in usable if i not in inside], room_s, waiting, costs)
    return Composed(first, later, [])


def _fill(first: PlannedBatch, others: list[int], waiting: Waiting, costs: Costs) -> None:
    """Whom the batch holds as it is joins it, if nobody becomes late and it costs no more than a share of its own."""
    place, most = first.place, costs.most[first.place]
    table, kinds = costs.tables[place], waiting.kinds
    for i in others:
        rows = first.rows + waiting.rows[i]
        if first.rows >= most:
            return
        if rows > most or costs.both(place, waiting.places[i]) != place:
            continue
        if kinds and kinds[i] != kinds[first.members[0]]:
            continue
        length_s, share_s = table[rows], costs.shares[waiting.places[i]] * waiting.rows[i]
        if length_s <= min(first.left_s, waiting.left_s[i]) and length_s - first.length_s <= share_s:
            _join(first, i, place, length_s, waiting)


def _rescue(first: PlannedBatch, put_off: list[int], room_s: float, waiting: Waiting, costs: Costs) -> None:
    """Who was put off joins the batch, if all are still in time and it earns enough for what it costs."""
    kinds, inside = waiting.kinds, set(first.members)
    for i in put_off:
        if i in inside or (kinds and kinds[i] != kinds[first.members[0]]):
            continue
        place, rows = costs.both(first.place, waiting.places[i]), first.rows + waiting.rows[i]
        if rows > costs.most[place]:
            continue
        length_s = costs.tables[place][rows]
        growth_s = length_s - first.length_s
        if growth_s > room_s or length_s > min(first.left_s, waiting.left_s[i]):
            continue
        if waiting.values[i] * first.length_s >= RESCUE * first.value * growth_s:
            room_s -= growth_s
            _join(first, i, place, length_s, waiting)


def _join(batch: PlannedBatch, i: int, place: int, length_s: float, waiting: Waiting) -> None:
    """The request is one of the batch, which now has this place and duration."""
    batch.members.append(i)
    batch.place, batch.length_s = place, length_s
    batch.rows += waiting.rows[i]
    batch.left_s = min(batch.left_s, waiting.left_s[i])
    batch.value += waiting.values[i]
