"""The contents of the answers to `models` and `status`. Pure."""

from collections.abc import Mapping
from typing import Any

from frontend.controllers import Controllers
from mesh import wire


def describe_models(models: Mapping[str, wire.ModelEntry], controllers: Controllers) -> list[dict[str, Any]]:
    """The models of the answer to `models`."""
    described = []
    for entry in models.values():
        spec = entry.spec
        ready = entry.current is not None and controllers.serves(entry.name, wire.ref_of(entry.name, entry.current))
        idle = entry.container and not ready and entry.target is None
        described.append(
            {
                "name": entry.name,
                "version": entry.current,
                "versions": list(entry.versions),
                "inputs": [_describe(tensor) for tensor in spec.inputs] if spec else [],
                "outputs": [_describe(tensor) for tensor in spec.outputs] if spec else [],
                "slo_ms": spec.slo_ms if spec else None,
                "batch_sizes": list(spec.batch_sizes) if spec else [],
                "batch_max": spec.batch_max if spec else None,
                "labels": list(spec.labels) if spec else [],
                "ready": ready,
                "preparing": entry.target,
                "fault": entry.fault or ("no container serves it at the moment" if idle else None),
                "fault_code": entry.fault_code or None,
            }
        )
    return described


def describe_members(table: wire.Table | None) -> list[dict[str, Any]]:
    """The members of the mesh, for the answer to `status`."""
    members = table.members if table is not None else ()
    return [
        {
            "id": m.id,
            "role": m.role,
            "pid": m.pid,
            "endpoints": {k: list(v) for k, v in m.endpoints.items()},
            "serves": m.offer.ref if m.offer is not None else None,  # only for a container
        }
        for m in members
    ]


def _describe(tensor: wire.TensorSpec) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}
