"""Reads the [models] tables of a scenario: groups of models that differ only in name. Pure except for reading files."""

import re
from dataclasses import dataclass
from pathlib import Path

import msgspec

from gearmesh.simulation.arrivals.sizes import SizeLaw
from gearmesh.simulation.fields import POSITIVE, Range, TomlTable
from gearmesh.simulation.laws import read_law
from gearmesh.simulation.parts import OpenTimes, SimModel
from gearmesh.simulation.profiles import BATCH_LIMIT, BATCH_MAX, STRETCH, batches_fault, durations_fault, read_profile
from gpu_worker.core.emulation import DeviceProfile, ModelTimes, exec_s, own_edges, sizes_of, times_fault
from gpu_worker.core.sized_times import FORMULA, exact_edges, geometric_edges
from mesh import wire
from mesh.wire.ranges import EXTENT_MAX

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,56}")  # as in the mesh, but shorter by a copy's number
DIM = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,31}")
DIMS_WANTED = "must be the open dimensions, each with its least and greatest extent, as {seq = [1, 512]}"


@dataclass(frozen=True, slots=True)
class ModelKind:
    """One kind of model that a group has copies of."""

    name: str
    weights_bytes: int
    batch_max: int
    exec_s: tuple[float, ...]  # seconds by batch, 0..batch_max, at the greatest extents; exec_s[0] == 0.0
    times: ModelTimes
    dims: tuple[wire.Dim, ...] = ()  # open dimensions


def add_group(
    models: list[SimModel], table: TomlTable, index: int, folder: Path, edges: int | None, sizes: SizeLaw | None
) -> DeviceProfile | None:
    """Adds the models of one [models] table. Returns the profile it names, if any.

    `edges`: in each dimension, to which devices pad; None: they pad nothing. `sizes`: of requests of models in groups
    that have no law of their own.
    """
    profile, kinds = _kinds(table, folder)
    name = table.text("name", "")
    if name and not NAME.fullmatch(name):
        table.fault("name", "must be letters, digits, _, . and -, at most 57 of them")
    count = table.whole("count", max(1, len(kinds)), 1, 100_000)
    share = table.number("rate_share", None, Range(high=1.0, above=True)) if table.has("rate_share") else None
    slo_ms, weight = table.numbers("slo_ms", ()), table.number("weight", 1.0, POSITIVE)
    own = read_law(table.table("sizes"), folder) if table.has("sizes") else sizes
    exact = table.flag("exact")
    opened = [_opened(table, kind, edges, own, exact) for kind in kinds]
    for key in ("sizes", "exact"):
        if kinds and key in table.given and not any(opened):
            table.fault(key, "only a model with open dimensions has it; give dims")
    table.end()
    for i in range(count if kinds else 0):
        kind, of = kinds[i % len(kinds)], opened[i % len(kinds)]
        label = name or (kind.name if profile else f"group{index}" if table.place != "models" else "model")
        copy = f"{label}.{i}" if count > 1 else label
        models.append(SimModel(copy, kind.weights_bytes, kind.batch_max, kind.exec_s, slo_ms, weight, index, share, of))
    return profile


def _opened(table: TomlTable, kind: ModelKind, edges: int | None, law: SizeLaw | None, exact: bool) -> OpenTimes | None:
    """What is open of the model; None if nothing."""
    if not kind.dims:
        return None
    fault = law.fault(kind.dims) if law is not None else ""
    if fault:
        table.faults.append(f"{table.key('sizes') if table.has('sizes') else 'load.sizes'}: for {kind.name}: {fault}")
    own = own_edges(kind.times, kind.dims)
    if own is None:
        own = exact_edges(kind.dims) if edges is None else [geometric_edges(dim, edges) for dim in kind.dims]
    cells = sizes_of(kind.times, kind.dims, range(1, kind.batch_max + 1), own)
    return OpenTimes(kind.dims, kind.times, tuple(map(tuple, own)), cells, edges is not None and not exact, law, exact)


def _kinds(table: TomlTable, folder: Path) -> tuple[DeviceProfile | None, list[ModelKind]]:
    """The kinds of model that a group has copies of; empty if they are not known because of a fault."""
    weights_mb = table.number("weights_mb", 100.0, POSITIVE)
    ways = [key for key in ("profile", "exec_ms", "tables") if table.has(key)]
    if len(ways) != 1:
        table.faults.append(
            f"{table.key('exec_ms')}: give either exec_ms = {{intercept, slope}}, or profile, or tables by size"
        )
        for key in ("batch_max", "use", "dims", "elements_max"):
            table.has(key)
        return None, []
    if ways == ["profile"]:
        return _profiled(table, folder, weights_mb)
    times = _given(table, weights_mb)
    if times is None:
        for key in ("batch_max", "dims", "elements_max"):
            table.has(key)
        return None, []
    return None, [model_kind(table, "the model", times, weights_mb)]


def _profiled(table: TomlTable, folder: Path, weights_mb: float) -> tuple[DeviceProfile | None, list[ModelKind]]:
    """The profile that the group names, and the kinds that it uses of it."""
    profile = read_profile(table, folder)
    used = table.names("use", list(profile.models) if profile else ())
    if profile is None:
        for key in ("batch_max", "dims", "elements_max"):
            table.has(key)
        return None, []
    times = {name: profile.models[name] for name in used}
    if table.has("weights_mb"):
        times = {name: msgspec.structs.replace(own, weights_mb=weights_mb) for name, own in times.items()}
    return profile, [model_kind(table, name, times[name], weights_mb) for name in used]


def _given(table: TomlTable, weights_mb: float) -> ModelTimes | None:
    """The durations that stand in the group itself; None if they cannot be used (a fault is noted)."""
    if table.has("tables"):
        try:
            found = msgspec.convert({"sizes": table.given["tables"], "weights_mb": weights_mb}, ModelTimes)
        except msgspec.ValidationError as error:
            table.fault("tables", f"must be a list of {{extents = [64], exec_ms = {{1 = 0.9, 8 = 1.4}}}}: {error}")
            return None
        wrong = durations_fault(found)
        if wrong:
            table.faults.append(f"{table.key('tables')}: {wrong.removeprefix('sizes: ')}")
            return None
        sizes = [int(size) for of in found.sizes for size in of.exec_ms if size.isdecimal()]
        return msgspec.structs.replace(found, batch_max=max(sizes, default=BATCH_MAX))
    given = table.given["exec_ms"]
    if isinstance(given, dict) and given.keys() >= FORMULA:
        try:
            return msgspec.convert({"exec_ms": given, "weights_mb": weights_mb}, ModelTimes)
        except msgspec.ValidationError as error:
            table.fault("exec_ms", f"a formula has numbers of 0 or more: {error}")
            return None
    fault = batches_fault(given) if isinstance(given, dict) else "must be {intercept, slope}, or {batch = ms}"
    if fault:
        table.faults.append(f"{table.key('exec_ms')}: {fault}")
        return None
    sizes = [int(size) for size in given if size.isdecimal()]
    return ModelTimes(exec_ms=dict(given), weights_mb=weights_mb, batch_max=max(sizes, default=BATCH_MAX))


def model_kind(table: TomlTable, name: str, times: ModelTimes, weights_mb: float) -> ModelKind:
    """The kind of model; `batch_max`, `dims` and `elements_max` of the table replace its own.

    `weights_mb` is used if `times` has none.
    """
    given = [size.exec_ms for size in times.sizes] or [times.exec_ms]
    sizes = [int(size) for one in given for size in one if size.isdecimal()]
    limit = min(BATCH_LIMIT, max(sizes) * (1 if times.sizes else STRETCH)) if sizes else BATCH_LIMIT
    batch_max = table.whole("batch_max", min(times.batch_max, limit), 1, limit)
    if table.has("elements_max"):
        times = msgspec.structs.replace(times, elements_max=table.whole("elements_max", None, 1, 1 << 53))
    times, dims = _open_dims(table, name, times)
    most = tuple(dim.most for dim in dims)
    durations = (0.0, *(exec_s(times, batch, most) for batch in range(1, batch_max + 1)))
    if min(durations[1:]) <= 0:
        table.fault("batch_max", f"the durations of {name} fall to 0 or below before it; give more sizes")
    return ModelKind(name, round((times.weights_mb or weights_mb) * 1e6), batch_max, durations, times, dims)


def _open_dims(table: TomlTable, name: str, times: ModelTimes) -> tuple[ModelTimes, tuple[wire.Dim, ...]]:
    """(the times with the open dimensions of the group, these); none are open if there are faults, which are noted."""
    closed = msgspec.structs.replace(times, dims={}, elements_max=None)
    sized = bool(times.sizes) or "element" in times.exec_ms
    if table.has("dims"):
        found = _ranges(table.given["dims"])
        if not found:
            table.fault("dims", DIMS_WANTED)
            return closed, ()
        times = msgspec.structs.replace(times, dims=found)
    elif sized and not times.dims:
        table.faults.append(f"{table.key('dims')}: {DIMS_WANTED}; {name} has durations by size")
    fault = times_fault(times)
    if times.sizes and times.dims and len(times.sizes[0].extents) != len(times.dims):
        fault = f"dims: {len(times.dims)} are open, and extents have {len(times.sizes[0].extents)} numbers"
    if fault:
        table.faults.append(f"{table.place}.{fault}")
        return closed, ()
    return times, tuple(wire.Dim(name=key, least=low, most=high) for key, (low, high) in times.dims.items())


def _ranges(given: object) -> dict[str, tuple[int, int]]:
    """{dimension: (least, greatest extent)} as the file has it; empty if that is not what it has."""
    if not isinstance(given, dict):
        return {}
    found = {}
    for key, ends in given.items():
        whole = isinstance(ends, list) and len(ends) == 2 and all(type(end) is int for end in ends)
        if not DIM.fullmatch(key) or not whole or not 1 <= ends[0] <= ends[1] <= EXTENT_MAX:
            return {}
        found[key] = (ends[0], ends[1])
    return found
