"""A bound on the requests answered in time if only LOADs take time: each model needs one before its first answer. Pure.

Devices start empty. A request is answered in time only if some device has ended a LOAD of its model by the request's
deadline minus the time of its EXEC. Let x[m, k] be the share of model m's first LOAD that is done for requests that can
wait for it until slot k, and no longer. Then

    maximise   sum x[m, k] x (requests of m that can wait until k or longer)
    subject to sum over k of x[m, k] <= 1,   LOADs for the slots up to k take no more than the devices' time

by then. The program may split LOADs, move them between devices and do them before anybody asks, and its memory holds
everything. So no scheduler can do better, as no LOAD is quicker than the profile says.

Source: docs/design/bounds.md#load-bound.
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.optimize import linprog
from scipy.sparse import coo_array

from gearmesh.simulation.bounds.sharing import NS, Requests
from gearmesh.simulation.parts import Scenario

Floats: TypeAlias = npt.NDArray[np.float64]
Longs: TypeAlias = npt.NDArray[np.int64]
SLOTS = 200


def answered_at_most(scenario: Scenario, requests: Requests) -> float:
    """No scheduler answers more requests than this in time. Raises: RuntimeError if HiGHS fails."""
    wait_s = (requests.deadline - requests.durations[requests.kind, 1]) / NS
    possible = wait_s > 0
    if not possible.any():
        return 0.0
    width_s = float(wait_s.max()) / SLOTS
    slot = np.minimum((wait_s[possible] / width_s).astype(np.int64), SLOTS - 1)
    groups, counts = np.unique(requests.model[possible] * SLOTS + slot, return_counts=True)
    model, slot = np.divmod(groups, SLOTS)
    load_s = np.array([scenario.devices.load_s(m) for m in scenario.models])[model]
    capacity_s = scenario.devices.count * width_s
    if load_s[np.unique(model, return_index=True)[1]].sum() <= capacity_s * (slot.min() + 1):
        return float(counts.sum())
    return _solve(model, slot, _from_here_on(model, counts), load_s / capacity_s)


def _from_here_on(model: Longs, counts: Longs) -> Longs:
    """For each group, the requests of its model in this group and in later ones [groups]. Groups are sorted."""
    before = np.cumsum(counts) - counts
    ends = np.searchsorted(model, model, side="right")
    return np.asarray(np.append(before, counts.sum())[ends] - before)


def _solve(model: Longs, slot: Longs, value: Longs, load: Floats) -> float:
    """The program's value. `load`: in slots of all devices' time. Columns: groups, then time left over by slot."""
    groups = len(model)
    _, row = np.unique(model, return_inverse=True)
    once = coo_array((np.ones(groups), (row, np.arange(groups))), shape=(int(row.max()) + 1, groups + SLOTS)).tocsr()
    slots = np.arange(SLOTS)
    time = coo_array(
        (
            np.concatenate([load, np.ones(SLOTS), -np.ones(SLOTS - 1)]),
            (
                np.concatenate([slot, slots, slots[1:]]),
                np.concatenate([np.arange(groups), groups + slots, groups + slots[:-1]]),
            ),
        ),
        shape=(SLOTS, groups + SLOTS),
    ).tocsr()
    gain = np.concatenate([-value.astype(np.float64), np.zeros(SLOTS)])
    found = linprog(
        gain, A_ub=once, b_ub=np.ones(once.shape[0]), A_eq=time, b_eq=np.ones(SLOTS), bounds=(0, None), method="highs"
    )
    if found.status != 0:
        raise RuntimeError(f"HiGHS found no optimum: {found.message}")
    return float(-found.fun) * (1 + 1e-9) + 1e-6
