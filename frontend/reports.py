"""The contents of the answers to `models` and `status`. Pure."""

from collections.abc import Mapping
from typing import Any

from frontend.controllers import Controllers
from frontend.core.described import described_dims, described_tensor
from mesh import wire
from mesh.starting import starting_text


def describe_models(
    models: Mapping[str, wire.ModelEntry], controllers: Controllers, starting: Mapping[str, wire.ChildState]
) -> list[dict[str, Any]]:
    """The models of the answer to `models`.

    `starting`: {model: its container, whose code is being started}; it may be the first of its model.
    """
    described = []
    first = [_unknown(name) for name in starting if name not in models]
    for entry in (*models.values(), *first):
        spec = entry.spec
        child = starting.get(entry.name)
        ready = entry.current is not None and controllers.serves(entry.name, wire.ref_of(entry.name, entry.current))
        fine = ready or entry.current is None or bool(entry.fault)
        unserved = None if fine else _unserved(entry, controllers)
        described.append(
            {
                "name": entry.name,
                "version": entry.current,
                "versions": list(entry.versions),
                "inputs": [described_tensor(tensor) for tensor in spec.inputs] if spec else [],
                "outputs": [described_tensor(tensor) for tensor in spec.outputs] if spec else [],
                **described_dims(spec),
                "slo_ms": spec.slo_ms if spec else None,
                "batch_sizes": list(spec.batch_sizes) if spec else [],
                "batch_max": spec.batch_max if spec else None,
                "labels": list(spec.labels) if spec else [],
                "ready": ready,
                "preparing": entry.target,
                "fault": _fault(entry, child if not ready else None, unserved),
                "fault_code": entry.fault_code or None,
                "unserved": unserved,
                "starting": _describe_child(child) if child is not None else None,
            }
        )
    return described


def _unknown(name: str) -> wire.ModelEntry:
    """A model of which nothing is known yet but that a container of it is being started."""
    return wire.ModelEntry(name=name, current=None, target=None, versions=(), owner=None, container=True)


def _fault(entry: wire.ModelEntry, child: wire.ChildState | None, unserved: str | None) -> str | None:
    if child is not None:
        return starting_text(child)
    return entry.fault or (unserved if entry.container and entry.target is None else None)


def _unserved(entry: wire.ModelEntry, controllers: Controllers) -> str:
    """Who is missing, of a version that is not ready though nothing is wrong with it as far as anybody knows."""
    if controllers.owner(entry.name) is None:
        return "no controller can be reached"
    return f"no {'container' if entry.container else 'worker'} serves it at the moment"


def _describe_child(child: wire.ChildState) -> dict[str, Any]:
    """A container whose code is being started, or that has died before; times in seconds."""
    return {
        "model": child.model, "serves": child.serves, "for_s": round(child.for_s, 3), "starts": child.starts,
        "line": child.line, "why": child.why,
    }  # fmt: skip


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
            "child": _describe_child(m.child) if m.child is not None else None,  # likewise
        }
        for m in members
    ]
