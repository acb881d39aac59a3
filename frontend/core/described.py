"""Inputs, outputs and open dimensions as clients are told them; docs/protocol.md tells the fields. Pure."""

from typing import Any

from mesh import wire

BATCH = "batch"  # the first dimension's name


def described_tensor(tensor: wire.TensorSpec) -> dict[str, Any]:
    """Returns the input or output as a map: fields that do not apply are absent."""
    told: dict[str, Any] = {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}
    if any(tensor.dims):
        told["dim_names"] = [BATCH, *tensor.dims]
    if tensor.owner:
        told["owner"] = tensor.owner
    if tensor.count:
        told["count"] = tensor.count
    return told


def described_dims(spec: wire.ModelSpec | None) -> dict[str, Any]:
    """Returns the fields that a model, or an application, with open dimensions has in addition; else none."""
    if spec is None or not spec.dims:
        return {}
    return {"dims": {dim.name: [dim.least, dim.most] for dim in spec.dims}}
