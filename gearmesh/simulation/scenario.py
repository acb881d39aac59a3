"""A scenario: devices, models, load, noise and faults; read from TOML. Pure except for reading files.

    [devices]                       count = 1, memory_mb = 65536, load_gb_per_s = 12.3
    count = 4                       load_fixed_ms = 0, page_mb = 1             (defaults; a profile has its own)
    edges = 8                       to which inputs are padded, in each open dimension; if not given to none

    [models]                        or several [[models]], which are groups
    count = 32                      1; with a profile, the total, cycling through its models (default: one of each)
    weights_mb = 51                 100
    batch_max = 32                  32; with a table the largest size given
    exec_ms = {intercept = 0.8, slope = 0.11}     or {1 = 0.9, 2 = 1.0, 4 = 1.3}
    dims = {seq = [1, 512]}         open dimensions, one or two; durations may then go by size:
    exec_ms = {intercept = 0.9, element = 0.0005, square = 2e-7, free = 600, least = 0}   see sized_times.py
    tables = [{extents = [64], exec_ms = {1 = 0.9, 8 = 1.2}}, ...]          instead of exec_ms; a whole grid
    elements_max, sizes, exact      rows x extents that memory holds; in place of the load's; true: nothing is padded
    profile = "paper"               instead of exec_ms: "paper", "h100" or a file; see profiles.py
    use = ["resnet50_v2"]           with a profile: only these of its models
    name, slo_ms, weight = 1        of the group's models; their slo_ms replaces the load's; value of one answer
    rate_share                      the group's share of rate_rps; groups without one divide the rest by their counts

    [load]
    kind = "poisson"                see KINDS; each has keys of its own, in parts.py
    rate_rps = 9000                 over all models
    cv = 1, zipf = 0                coefficient of variation of the gaps (gamma); popularity exponent
    slo_ms = 100                    or a list: each request draws one of them (slo_draw = "choice", uniform), or one
    seconds = 10                    between the least and the greatest (slo_draw = "log_uniform")
    sizes = {kind = "uniform"}      of requests of models with open dimensions; see laws.py

    [noise], [faults] or [[faults]] see parts.py; none by default
    [policy]                        name = "atc", or a list of names: run unless --policy names others
    [policy.atc]                    parameters of that policy

MB are 10^6 bytes, GB 10^9. Pages round weights up; with the default page of 1 MB whole MB are exact.
"""

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from controller.core.policies.registry import POLICIES
from gearmesh.simulation.fields import NOT_NEGATIVE, POSITIVE, SHARE, Range, ScenarioError, TomlTable
from gearmesh.simulation.groups import add_group
from gearmesh.simulation.laws import read_law
from gearmesh.simulation.parts import Devices, InjectedFault, Noise, Scenario, SimModel, Workload
from gpu_worker.core.emulation import DeviceProfile

__all__ = [
    "Devices",
    "InjectedFault",
    "Noise",
    "Scenario",
    "ScenarioError",
    "SimModel",
    "Workload",
    "parse_scenario",
    "read_scenario",
]

SCENARIOS = Path(__file__).with_name("scenarios")  # that come with gearmesh
KINDS = ("poisson", "gamma", "maf", "burst", "log", "fixed", "ramp", "closed")
FAULTS = {
    "kill": "the device is gone, with all that is on it; after `seconds` it is back, empty",
    "slow": "EXEC takes `factor` times as long, for `seconds`",
    "hang": "nothing ends on the device, for `seconds`",
    "lose": "the controller never hears of the next `count` actions that end on the device",
    "restart": "the controller is gone with all that it knows; another one takes over after `seconds`",
}
REQUESTS_MAX = 20_000_000
EDGES_MAX = 64  # in each dimension; two have at most 4096 cells


def read_scenario(path: Path) -> Scenario:
    """The scenario in a file; paths in it are relative to the file. Raises: ScenarioError."""
    try:
        mapping = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ScenarioError(str(path), [f"no TOML file that can be read: {error}"]) from error
    return parse_scenario(mapping, path.stem, path.parent)


def find_scenario(named: str) -> Path:
    """The file of that path; or, where there is none, the scenario of that name that comes with gearmesh."""
    inside = SCENARIOS / f"{named}.toml"
    return inside if inside.exists() and not Path(named).exists() else Path(named)


def parse_scenario(mapping: Mapping[str, Any], name: str, folder: Path) -> Scenario:
    """The scenario in a mapping as read from TOML. Raises: ScenarioError with all faults."""
    faults: list[str] = []
    top = TomlTable("", mapping, faults)
    groups = top.tables("models")
    if not groups and isinstance(mapping.get("models", []), list):
        top.fault("models", "must be a table [models], or tables [[models]]")
    models: list[SimModel] = []
    profile: DeviceProfile | None = None
    device, loaded = top.table("devices"), top.table("load")
    edges = device.whole("edges", None, 1, EDGES_MAX) if device.has("edges") else None
    sizes = read_law(loaded.table("sizes"), folder) if loaded.has("sizes") else None
    for index, table in enumerate(groups):
        profile = add_group(models, table, index, folder, edges, sizes) or profile
    devices = _devices(device, profile)
    load = _load(loaded, folder)
    _check_sizes(models, load, loaded)
    noise = _noise(top.table("noise"))
    broken = tuple(_fault(table, devices.count) for table in top.tables("faults"))
    policies, parameters = _policies(top.table("policy"))
    top.end()
    _check_whole(models, devices, faults)
    if faults:
        raise ScenarioError(name, faults)
    return Scenario(
        name, devices, tuple(models), load, noise, broken, policies, _notes(mapping, load, models), parameters
    )


def _check_sizes(models: list[SimModel], load: Workload, table: TomlTable) -> None:
    """Checks that requests of models with open dimensions have sizes, which lines of a log may have themselves."""
    opened = [model for model in models if model.open is not None]
    nameless = next((model.name for model in opened if model.open is not None and model.open.sizes is None), None)
    if nameless is not None and load.kind != "log" and "sizes" not in table.given:
        wanted = 'say how long requests are, as {kind = "uniform"}'
        table.faults.append(f"load.sizes: {nameless} has open dimensions: {wanted}; it is missing")
    if not opened and "sizes" in table.given and models:
        table.fault("sizes", "only models with open dimensions have sizes; give dims in [models]")


def _check_whole(models: list[SimModel], devices: Devices, faults: list[str]) -> None:
    """Checks what involves several tables."""
    names = [model.name for model in models]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        faults.append(f"models.name: must differ between groups; {', '.join(twice[:3])} occur twice")
    largest = max(models, key=lambda model: model.weights_bytes, default=None)
    if largest and devices.pages_of(largest) > devices.pages:
        faults.append(
            f"devices.memory_mb: must hold the largest model, {largest.name} of {largest.weights_bytes / 1e6:g} MB, in "
            f"pages of {devices.page_bytes / 1e6:g} MB; got {devices.memory_bytes / 1e6:g}"
        )
    shares = {model.group: model.rate_share for model in models if model.rate_share is not None}
    total, groups = sum(shares.values(), 0.0), len({model.group for model in models})
    if total > 1 + 1e-9 or (shares and len(shares) == groups and total < 1 - 1e-9):
        wanted = "add up to 1" if len(shares) == groups else "not exceed 1 together"
        faults.append(f"models.rate_share: the groups' shares must {wanted}; they are {total:g}")


def _devices(table: TomlTable, profile: DeviceProfile | None) -> Devices:
    page_bytes = profile.page_bytes if profile else 1_000_000
    memory_bytes = profile.pages * profile.page_bytes if profile else 65_536_000_000
    if table.has("page_mb"):
        page_bytes = max(1, round(table.number("page_mb", None, POSITIVE) * 1e6))
    if table.has("memory_mb"):
        memory_bytes = round(table.number("memory_mb", None, POSITIVE) * 1e6)
    devices = Devices(
        count=table.whole("count", 1, 1, 10_000),
        memory_bytes=memory_bytes,
        page_bytes=page_bytes,
        load_bytes_per_s=table.number("load_gb_per_s", profile.load_gb_per_s if profile else 12.3, POSITIVE) * 1e9,
        load_fixed_s=table.number("load_fixed_ms", profile.load_fixed_ms if profile else 0.0) / 1e3,
    )
    table.end()
    return devices


def _load(table: TomlTable, folder: Path) -> Workload:
    kind = table.choice("kind", None, KINDS)
    rate = None
    if table.has("rate_rps") or not (kind in ("log", "closed") or (kind == "maf" and table.has("path"))):
        rate = table.number("rate_rps", None, POSITIVE)
    load = Workload(
        kind=kind,
        rate_rps=None if kind == "closed" else rate,
        cv=table.number("cv", 1.0, Range(high=50.0)),
        zipf=table.number("zipf", 0.0, Range(high=10.0)),
        slo_ms=table.numbers("slo_ms", (100.0,)),
        slo_draw=table.choice("slo_draw", "choice", ("choice", "log_uniform")),
        seconds=table.number("seconds", math.inf if kind == "log" else 10.0, Range(high=1e6, above=True))
        if table.has("seconds") or kind != "log"
        else math.inf,
    )
    load = _load_of_kind(table, load, folder)
    most = max(load.rate_rps or 0.0, load.rate_end_rps or 0.0) * load.seconds
    if math.isfinite(most) and most > REQUESTS_MAX:
        table.fault("rate_rps", f"rate_rps x seconds must be at most {REQUESTS_MAX}")
    if kind:
        table.end()
    return load


def _notes(mapping: Mapping[str, Any], load: Workload, models: Sequence[SimModel]) -> tuple[str, ...]:
    """Warnings about keys that have no effect."""
    given, notes = mapping["load"], []
    if "cv" in given and load.kind not in ("gamma", "burst") and load.cv != 1:
        notes.append(f"load.cv has no effect with kind {load.kind}; gamma and burst heed it")
    if "edges" in mapping.get("devices", {}) and all(model.open is None for model in models):
        notes.append("devices.edges has no effect: no model has open dimensions")
    if given.get("zipf") and load.kind in ("maf", "log", "closed"):
        notes.append(f"load.zipf has no effect with kind {load.kind}, which knows how popular each model is")
    return tuple(notes)


def _load_of_kind(table: TomlTable, load: Workload, folder: Path) -> Workload:
    """The load with the keys that only its kind has."""
    if load.kind == "log" or (load.kind == "maf" and table.has("path")):
        path = folder / table.text("path", None)
        if table.given.get("path") and not (path.is_file() or (load.kind == "log" and path.is_dir())):
            table.fault("path", "must be a file that can be read, or of a log a folder of request logs")
        load = replace(load, path=path)
    if load.kind == "burst":
        burst_s, idle_s = table.number("burst_s", 0.5, POSITIVE), table.number("idle_s", 1.5, POSITIVE)
        load = replace(load, burst_s=burst_s, idle_s=idle_s)
    if load.kind == "closed":
        clients, think_ms = table.whole("clients", None, 1, 10_000), table.number("think_ms", 0.0)
        load = replace(load, clients=clients, think_s=think_ms / 1e3)
    if load.kind == "ramp":
        load = replace(
            load,
            gaps=table.choice("gaps", "poisson", ("poisson", "fixed")),
            steps=table.whole("steps", 5, 1, 1000),
            rate_end_rps=table.number("rate_end_rps", None, POSITIVE) if table.has("rate_end_rps") else None,
            slo_end_ms=table.number("slo_end_ms", None, POSITIVE) if table.has("slo_end_ms") else None,
        )
    if load.kind == "maf":
        mapping = table.choice("mapping", "block", ("block", "stripe", "random"))
        load = replace(load, mapping=mapping, minutes=table.whole("minutes", 60, 1, 20_160))
        if load.path is None:
            load = replace(load, functions=table.whole("functions", 46_000, 1, 1_000_000))
        else:
            load = replace(load, start_minute=table.whole("start_minute", 0, 0, 1439))
    return load


def _noise(table: TomlTable) -> Noise:
    share = table.number("outlier_share", 0.0, SHARE)
    noise = Noise(
        exec_cv=table.number("exec_cv", 0.0, Range(high=5.0)),
        outlier_share=share,
        outlier_factor=table.number("outlier_factor", None if share else 1.0, Range(low=1.0)),
        load_cv=table.number("load_cv", 0.0, Range(high=5.0)),
        network_ms=table.number("network_ms", 0.0, NOT_NEGATIVE),
        network_jitter_ms=table.number("network_jitter_ms", 0.0, NOT_NEGATIVE),
    )
    table.end()
    return noise


def _fault(table: TomlTable, devices: int) -> InjectedFault:
    kind = table.choice("kind", None, tuple(FAULTS))
    fault = InjectedFault(at_s=table.number("at_s", None), kind=kind)
    if kind != "restart":
        fault = replace(fault, device=table.whole("device", 0, 0, devices - 1))
    if kind == "lose":
        fault = replace(fault, count=table.whole("count", 1, 1, 1_000_000))
    else:
        fault = replace(fault, seconds=table.number("seconds", None if kind in ("slow", "hang") else 0.0))
    if kind == "slow":
        fault = replace(fault, factor=table.number("factor", None, Range(low=1.0)))
    if kind:
        table.end()
    return fault


def _policies(table: TomlTable) -> tuple[tuple[str, ...], dict[str, Any]]:
    """(names of the policies to run, {policy: parameters}). The policy itself checks its parameters."""
    names = table.given.get("name", "atc")
    if table.has("name"):
        names = (
            table.names("name", tuple(POLICIES))
            if isinstance(names, list)
            else table.choice("name", None, tuple(POLICIES))
        )
    parameters = {name: dict(table.table(name).given) for name in POLICIES if table.has(name)}
    table.end()
    return (names,) if isinstance(names, str) else tuple(names), parameters
