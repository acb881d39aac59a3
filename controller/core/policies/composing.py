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
go together, as `atc.py` has it. Source of the rule and of the constants: docs/design/policy.md, "Batches of unequal
length".

All times are *table seconds*: durations as the tables have them, and what is left until a deadline in the same measure.
By how much the device is slower than its tables, and what may be added by chance, the caller has divided out.
"""

import heapq
import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field

CLASS_STEP = 1.05  # a class ends where a row costs this many times what it does in the first of its places ...
CLASS_STEP_TWO = 1.3  # ... and so much with two dimensions, where few requests are of one place
RESCUE = 0.5  # who was put off earns at least this share of what the batch that it joins earns, per second
PASS_GAIN = 1.02  # the first deadlines of one class are passed over if the batch then earns more than this, per second
ALIKE = 1.5  # ratio of values up to which requests of one class are alike
SAME = 1e-9  # values that differ by this share at most are equal


@dataclass(slots=True)
class Costs:
    """What batches of one version cost on one device, by the place of their greatest extents and by rows."""

    tables: list[list[float]]  # [place][rows], from 0 rows on; falls neither in rows nor in extents; inf: does not fit
    limits: list[int]  # by place: most rows of a batch of several requests
    cap_s: float = math.inf  # a batch of several requests takes no longer, unless all cost about the same
    width: int = 0  # places along the second dimension, which varies fastest; 0: there is one dimension
    shares: list[float] = field(default_factory=list)  # by place: least time per row, of batches within the cap
    full: list[int] = field(default_factory=list)  # by place: rows of the batch that has this least time per row
    most: list[int] = field(default_factory=list)  # by place: most rows within the cap
    classes: list[int] = field(default_factory=list)  # by place: its class, the cheapest first

    def __post_init__(self) -> None:
        for table, limit in zip(self.tables, self.limits, strict=True):
            most = max(1, bisect_right(table, self.cap_s, 1, min(limit, len(table) - 1) + 1) - 1)
            full, share = 1, table[1]
            for rows in range(2, most + 1):
                if table[rows] < share * rows:
                    full, share = rows, table[rows] / rows
            self.shares.append(share)
            self.full.append(full)
            self.most.append(most)
        self.classes = [0] * len(self.tables)
        at, first, step = -1, -math.inf, CLASS_STEP_TWO if self.width else CLASS_STEP
        for place in sorted(range(len(self.tables)), key=self.shares.__getitem__):
            if self.shares[place] > step * first:
                at, first = at + 1, self.shares[place]
            self.classes[place] = at

    def both(self, place: int, other: int) -> int:
        """The place that holds the extents of both."""
        if not self.width:
            return place if place > other else other
        height = max(place // self.width, other // self.width)
        return height * self.width + max(place % self.width, other % self.width)


@dataclass(slots=True)
class Waiting:
    """Requests that wait, in order of their deadlines. The lists belong together: one entry for each request."""

    places: list[int]
    rows: list[int]  # each fits alone into a batch, or is never in time
    left_s: list[float]  # from when the batch would start until the deadline; ascending
    values: list[float]  # what each is worth in this decision
    kinds: list[int] = field(default_factory=list)  # only requests of one kind share a batch; empty: all are


@dataclass(slots=True)
class Group:
    """Requests that would be one batch."""

    members: list[int]  # indexes of the waiting
    place: int  # that holds the extents of all
    rows: int
    length_s: float
    left_s: float  # until the first of their deadlines
    value: float


@dataclass(slots=True)
class Composed:
    """The plan: the batch that runs next, and what comes after it."""

    first: Group
    later: list[Group]  # kept, in the order in which they run; what has joined the first batch may still be in them
    passed: list[int]  # those whose deadlines were passed over for a larger batch


def compose(waiting: Waiting, costs: Costs, *, hosts: int = 1, differ: bool = False) -> Composed | None:
    """The plan; None if nobody can be in time.

    `hosts`: devices that share the work. `differ`: the requests have different objectives.
    """
    places, rows, left_s, tables = waiting.places, waiting.rows, waiting.left_s, costs.tables
    usable = [i for i in range(len(places)) if tables[places[i]][rows[i]] <= left_s[i]]
    if not usable:
        return None
    alike = _are_alike(usable, waiting, costs)
    if alike and not differ:
        return _of_one_class(usable, waiting, costs)
    groups = _partition(usable, waiting, costs)
    kept = _keep(groups, hosts)
    if differ and len(usable) > 2:
        middle = len(usable) // 2
        halves = _partition(usable[:middle], waiting, costs) + _partition(usable[middle:], waiting, costs)
        kept_of_halves = _keep(halves, hosts)
        if _is_better(kept_of_halves, kept):
            groups, kept = halves, kept_of_halves
    if alike and len(kept) < len(groups):
        return _of_one_class(usable, waiting, costs)
    return _filled(kept, usable, waiting, costs, hosts)


def _is_better(kept: list[Group], others: list[Group]) -> bool:
    """Whether these groups have more value than the others, or as much in less time."""
    value = value_others = length_s = length_others_s = 0.0
    for group in kept:
        value += group.value
        length_s += group.length_s
    for group in others:
        value_others += group.value
        length_others_s += group.length_s
    if abs(value - value_others) > SAME * value:
        return value > value_others
    return length_s < length_others_s


def _group(members: list[int], waiting: Waiting, costs: Costs) -> Group:
    """These requests as one batch."""
    place = waiting.places[members[0]]
    rows, left, value = 0, math.inf, 0.0
    for i in members:
        place = costs.both(place, waiting.places[i])
        rows += waiting.rows[i]
        left = min(left, waiting.left_s[i])
        value += waiting.values[i]
    return Group(members, place, rows, costs.tables[place][rows], left, value)


# -- all cost about the same ------------------------------------------------------------------------------------------


def _are_alike(usable: list[int], waiting: Waiting, costs: Costs) -> bool:
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


def _of_one_class(usable: list[int], waiting: Waiting, costs: Costs) -> Composed:
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
    group = _group(usable[passed : passed + rows], waiting, costs)
    return Composed(group, [], usable[:passed])


# -- steps 2 and 3 ----------------------------------------------------------------------------------------------------


def _partition(usable: list[int], waiting: Waiting, costs: Costs) -> list[Group]:
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
    return _groups(order, sizes, waiting, costs)


def _partition_joint(usable: list[int], waiting: Waiting, costs: Costs) -> list[Group]:
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
    return _groups(order, sizes, waiting, costs)


def _groups(order: list[int], sizes: list[int], waiting: Waiting, costs: Costs) -> list[Group]:
    """The batches of the partition. `sizes`: by how many of the order, the members of the last batch."""
    groups = []
    end = len(order)
    while end > 0:
        groups.append(_group(order[end - sizes[end] : end], waiting, costs))
        end -= sizes[end]
    return groups


# -- steps 4 to 7 -----------------------------------------------------------------------------------------------------


def _keep(groups: list[Group], hosts: int) -> list[Group]:
    """The groups that are kept, by their first deadlines: each is in time if they run in this order.

    Ties: the one that earns more per second is first.
    """
    order = sorted(groups, key=lambda group: (group.left_s, -group.value / group.length_s))
    worst: list[tuple[float, int]] = []  # heap of (value per second, index in the order), those kept so far
    put_off: set[int] = set()
    total_s = 0.0  # of those kept so far
    for at, group in enumerate(order):
        heapq.heappush(worst, (group.value / group.length_s, at))
        before_s = total_s
        total_s += group.length_s
        while len(worst) > 1 and before_s / hosts + group.length_s > group.left_s:
            _, gone = heapq.heappop(worst)
            put_off.add(gone)
            total_s -= order[gone].length_s
            if gone == at:
                break
            before_s -= order[gone].length_s
    return [group for at, group in enumerate(order) if at not in put_off]


def _filled(kept: list[Group], usable: list[int], waiting: Waiting, costs: Costs, hosts: int) -> Composed:
    """The plan with its first batch filled up."""
    first, later = kept[0], kept[1:]
    planned_s = before_s = first.length_s
    room_s = math.inf  # by so much the first batch may grow, and the later ones are in time
    for group in later:
        room_s = min(room_s, group.left_s - before_s / hosts - group.length_s)
        before_s += group.length_s
    inside = set(first.members)
    _fill(first, [i for i in usable if i not in inside], waiting, costs)
    for group in kept:
        inside.update(group.members)
    if len(inside) < len(usable):
        room_s -= first.length_s - planned_s
        _rescue(first, [i for i in usable if i not in inside], room_s, waiting, costs)
    return Composed(first, later, [])


def _fill(first: Group, others: list[int], waiting: Waiting, costs: Costs) -> None:
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


def _rescue(first: Group, put_off: list[int], room_s: float, waiting: Waiting, costs: Costs) -> None:
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


def _join(group: Group, i: int, place: int, length_s: float, waiting: Waiting) -> None:
    """The request is one of the batch, which now has this place and duration."""
    group.members.append(i)
    group.place, group.length_s = place, length_s
    group.rows += waiting.rows[i]
    group.left_s = min(group.left_s, waiting.left_s[i])
    group.value += waiting.values[i]
