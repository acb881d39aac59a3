"""Shares the devices' time among requests: a flow from requests to slots of time, as a linear program. Pure.

Requests with the same first slot, the same last slot and about the same cost form a group. Groups with the same slots
form a pair. The program answers as many requests as possible:

    maximise sum y_g   0 <= y_g <= n_g,   sum over the pair's groups of cost_g y_g = time the pair takes,
    each pair takes time only from its own slots, and no slot gives more than devices x length.

A pair with many slots needs no variable for each of them. The slots are the leaves of a binary tree: a pair takes time
from the few nodes that make up its interval, and a node takes it from its children. This program has the same optimum
and is far smaller.

Source: the program, docs/design/bounds.md#interval-bound; the tree, as in segment trees (Bentley, 1977).
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.optimize import linprog
from scipy.sparse import coo_array, csr_array

Floats: TypeAlias = npt.NDArray[np.float64]
Longs: TypeAlias = npt.NDArray[np.int64]
COST_STEP = 1.02  # costs are rounded down to powers of this; prices stay good, and the bound is made with true costs


@dataclass(frozen=True, slots=True, eq=False)
class Slots:
    """The time axis in pieces, and where each request may be served."""

    edges: Longs  # ns [slots + 1]
    first: Longs  # [requests]
    after: Longs  # [requests]: one past the last

    @property
    def lengths(self) -> Longs:
        """ns [slots]."""
        return np.diff(self.edges)


@dataclass(frozen=True, slots=True, eq=False)
class Prices:
    """What a program says a slot is worth, in answers per device-second [slots], and its size."""

    prices: Floats
    groups: int


def slot_prices(slots: Slots, cost_s: Floats, devices: int) -> Prices:
    """The dual prices of the program above. All `cost_s` [requests] are finite. Raises: RuntimeError if HiGHS fails."""
    step = np.floor(np.log(np.maximum(cost_s, 1e-12)) / np.log(COST_STEP)).astype(np.int64)
    keys, counts = np.unique(np.stack([slots.first, slots.after, step], axis=1), axis=0, return_counts=True)
    pairs, pair_of = np.unique(keys[:, :2], axis=0, return_inverse=True)
    unit_s = float(np.median(slots.lengths)) / 1e9
    group_cost = COST_STEP ** keys[:, 2].astype(np.float64) / unit_s
    network = _Network.of(pairs, len(slots.lengths))
    equal, most = network.rows(pair_of.ravel(), group_cost)
    columns = equal.shape[1]
    gain = np.zeros(columns)
    gain[: len(keys)] = -1.0
    limits = np.full((columns, 2), [0.0, np.inf])
    limits[: len(keys), 1] = counts
    capacity = devices * slots.lengths / 1e9 / unit_s
    equals = np.zeros(equal.shape[0])
    found = linprog(gain, A_ub=most, b_ub=capacity, A_eq=equal, b_eq=equals, bounds=limits, method="highs-ipm")
    if found.status != 0:
        raise RuntimeError(f"HiGHS found no optimum: {found.message}")
    return Prices(np.maximum(0.0, -found.ineqlin.marginals) / unit_s, len(keys))


@dataclass(frozen=True, slots=True, eq=False)
class _Network:
    """Pairs, the tree's nodes (1 is the root, those of v are 2v and 2v + 1, leaves start at `size`), and flows."""

    pairs: int
    leaves: int
    size: int
    flow_pair: Longs  # flows from pairs into nodes
    flow_node: Longs
    edge_parent: Longs  # flows from nodes to their children
    edge_child: Longs

    @classmethod
    def of(cls, pairs: Longs, leaves: int) -> "_Network":
        """`pairs` [pairs, 2]: first slot, one past the last."""
        size = 1 << max(0, leaves - 1).bit_length()
        low, high, index = pairs[:, 0] + size, pairs[:, 1] + size, np.arange(len(pairs))
        owners, nodes = [], []
        while len(index):
            odd = (low & 1) == 1
            owners.append(index[odd])
            nodes.append(low[odd])
            low = low + odd
            odd = (high & 1) == 1
            high = high - odd
            owners.append(index[odd])
            nodes.append(high[odd])
            low, high = low >> 1, high >> 1
            going = low < high
            low, high, index = low[going], high[going], index[going]
        flow_node = np.concatenate(nodes)
        used = np.zeros(2 * size, np.bool_)
        used[flow_node] = True
        level = 1
        while level < size:
            parents = np.arange(level, 2 * level)
            used[2 * parents] |= used[parents]
            used[2 * parents + 1] |= used[parents]
            level *= 2
        inner = np.flatnonzero(used[:size])
        children = np.stack([2 * inner, 2 * inner + 1], axis=1).ravel()
        return cls(len(pairs), leaves, size, np.concatenate(owners), flow_node, np.repeat(inner, 2), children)

    def rows(self, pair_of: Longs, cost: Floats) -> tuple[csr_array, csr_array]:
        """(rows that are 0, rows that are at most a slot's time). Columns: groups, flows into nodes, flows between."""
        groups, flows, edges = len(pair_of), len(self.flow_pair), len(self.edge_child)
        flow_column, edge_column = groups + np.arange(flows), groups + flows + np.arange(edges)
        inner = np.unique(self.edge_parent)
        row_of = np.zeros(2 * self.size, np.int64)
        row_of[inner] = self.pairs + np.arange(len(inner))
        into, between = self.flow_node < self.size, self.edge_child < self.size
        equal = _matrix(
            (self.pairs + len(inner), groups + flows + edges),
            (pair_of, np.arange(groups), cost),
            (self.flow_pair, flow_column, -1.0),
            (row_of[self.flow_node[into]], flow_column[into], 1.0),
            (row_of[self.edge_parent], edge_column, -1.0),
            (row_of[self.edge_child[between]], edge_column[between], 1.0),
        )
        most = _matrix(
            (self.leaves, groups + flows + edges),
            (self.flow_node[~into] - self.size, flow_column[~into], 1.0),
            (self.edge_child[~between] - self.size, edge_column[~between], 1.0),
        )
        return equal, most


def _matrix(shape: tuple[int, int], *parts: tuple[Longs, Longs, Floats | float]) -> csr_array:
    """A sparse matrix from (rows, columns, values)."""
    rows = np.concatenate([part[0] for part in parts])
    columns = np.concatenate([part[1] for part in parts])
    values = np.concatenate([np.broadcast_to(part[2], part[0].shape) for part in parts])
    return coo_array((values, (rows, columns)), shape=shape).tocsr()
