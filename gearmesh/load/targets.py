"""What `gearmesh load` asks the mesh before it begins: its models, their lone latencies, and its processes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from frontend.client.async_client import AsyncClient
from frontend.client.client import RequestError
from gearmesh.load.errors import LoadError
from gearmesh.load.generating.messages import random_inputs
from gearmesh.load.plan import LoadTarget, ModelInput
from gearmesh.load.sizes import draw_extents
from mesh import wire

CONNECT_S = 5.0
LONE_RUNS, LONE_WARM = 9, 2  # requests that measure the batch-1 time, and warm-up requests before them
LONE_SLO_MS = 60_000.0
MEASURED_MODELS_MAX = 32


@dataclass(frozen=True, slots=True)
class Where:
    """The mesh that is asked."""

    addresses: tuple[str, ...]
    keys_dir: str = ""


async def find_targets(where: Where, models: Sequence[str]) -> dict[str, LoadTarget]:
    """The models as the mesh describes them; by default all that are ready. Raises: LoadError."""
    async with _client(where) as client:
        try:
            described = {model["name"]: model for model in (await client.call("models", timeout_s=CONNECT_S))["models"]}
        except RequestError as error:
            raise LoadError(
                f"no mesh answers at {', '.join(where.addresses)} within {CONNECT_S:g} s; is one up (gearmesh up), and "
                "is the address right (--address, GEARMESH_FRONTEND_PORT)?"
            ) from error
    ready = [name for name, model in described.items() if model["ready"]]
    known = ", ".join(ready[:12]) + (f" and {len(ready) - 12} more" if len(ready) > 12 else "") or "none"
    for name in models:
        if name not in described:
            raise LoadError(f"--model {name}: there is no such model; ready are: {known}")
        if not described[name]["ready"]:
            why = described[name]["fault"] or "it is being prepared"
            raise LoadError(f"--model {name}: it is not ready ({why}); ready are: {known}")
    if not ready:
        raise LoadError(f"the mesh at {', '.join(where.addresses)} has no model that is ready")
    return {name: _target(described[name]) for name in models or ready}


def _target(model: Mapping[str, object]) -> LoadTarget:
    inputs = model["inputs"]
    assert isinstance(inputs, list)
    tensors = tuple(
        ModelInput(t["name"], t["dtype"], tuple(t["shape"][1:]), tuple(t.get("dim_names", ())[1:])) for t in inputs
    )
    batch_max, ranges = model["batch_max"], model.get("dims") or {}
    assert isinstance(ranges, dict)
    dims = tuple(wire.Dim(name=name, least=least, most=most) for name, (least, most) in ranges.items())
    return LoadTarget(str(model["name"]), tensors, batch_max if isinstance(batch_max, int) else 1, dims=dims)


def _client(where: Where) -> AsyncClient:
    if not where.keys_dir:
        return AsyncClient(where.addresses)
    from mesh.net.keys import Keys

    return AsyncClient(where.addresses, keys=Keys.read(Path(where.keys_dir)).for_clients)


async def mesh_pids(where: Where) -> dict[str, int]:
    """{member: process id} of the mesh's services on this host, so that their CPU time is not counted as foreign."""
    async with _client(where) as client:
        try:
            members = (await client.call("status", timeout_s=CONNECT_S))["members"]
        except RequestError:
            return {}
    pids = {member["id"]: member["pid"] for member in members}
    return {name: pid for name, pid in pids.items() if _runs_gearmesh(pid)}


def _runs_gearmesh(pid: int) -> bool:
    """Whether this process exists on this host and belongs to a mesh (the member may be on another host)."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(
        part in (b"broker", b"controller", b"frontend", b"gpu_worker", b"gearmesh.operations.compact")
        for part in command
    )


async def measure_batch1(where: Where, targets: Mapping[str, LoadTarget]) -> dict[str, LoadTarget]:
    """The targets with the median latency, at the frontend, of requests sent one at a time. Raises: LoadError.

    With open dimensions, of requests with the greatest extents.
    Of more than 32 models, 32 are measured and the others get the median of those.
    """
    rng = np.random.default_rng(0)
    chosen = list(targets)[:: max(1, -(-len(targets) // MEASURED_MODELS_MAX))]
    measured: dict[str, float] = {}
    async with _client(where) as client:
        await client.models()
        for name in chosen:
            (longest,) = draw_extents("", targets[name], 1, rng)
            drawn = random_inputs(targets[name], 1, rng, longest)
            inputs = dict(zip((t.name for t in targets[name].inputs), drawn, strict=True))
            taken = []
            for _ in range(LONE_WARM + LONE_RUNS):
                try:
                    answer = await client.infer(name, inputs, slo_ms=LONE_SLO_MS, cache=False)
                except RequestError as error:
                    raise LoadError(f"--slo-factor: a lone request to {name} was not served: {error}") from error
                taken.append(answer.latency_ms)
            measured[name] = float(np.median(taken[LONE_WARM:]))
    common = float(np.median(list(measured.values())))
    return {name: replace(target, batch1_ms=measured.get(name, common)) for name, target in targets.items()}
