"""Which batches a device can execute of a version, and why it refuses others before anything is allocated. Pure."""

from gpu_worker.core.cutting import varies
from gpu_worker.core.jobs import Servable
from gpu_worker.core.outputs import row_bytes
from mesh import wire
from mesh.codes import ActionCode
from mesh.sizes import holds

Fault = tuple[ActionCode | None, str]  # (code, sentence; empty: what the code means); code None: there is no fault
FINE: Fault = (None, "")


def servable(
    spec: wire.ModelSpec, pages: int, batch_sizes: frozenset[int] | None, profile: wire.Profile | None = None
) -> Servable:
    """Returns what the lanes have to know of a version; `profile`: what was measured, if it was, says what fits."""
    if not varies(spec):
        return Servable(pages, spec.batch_max, batch_sizes, row_bytes(spec.outputs))
    limits = tuple((cell.extents, max(cell.exec_s)) for cell in profile.sizes) if profile is not None else ()
    return Servable(pages, spec.batch_max, batch_sizes, (), spec, limits)


def batch_fault(model: Servable, action: wire.Infer) -> Fault:
    """Returns why the device does not execute this batch: its rows, or the extents of its inputs."""
    rows = sum(part.rows for part in action.parts)
    if not 1 <= action.batch <= model.batch_max or rows > action.batch:
        return ActionCode.BAD_BATCH, ""
    if model.batch_sizes is not None and action.batch not in model.batch_sizes:
        return ActionCode.BAD_BATCH, ""
    if model.spec is not None:
        return _extents_fault(model, model.spec, action)
    if action.extents:
        return ActionCode.BAD_INPUT, f"extents {list(action.extents)} came, and the model has no open dimension"
    return FINE


def _extents_fault(model: Servable, spec: wire.ModelSpec, action: wire.Infer) -> Fault:
    most = model.largest(action.extents)
    if not most:
        return ActionCode.BAD_INPUT, f"a batch of extents {list(action.extents)}; {_taken(spec)}"
    if action.batch > most:
        return ActionCode.BAD_BATCH, (
            f"{action.batch} rows of extents {list(action.extents)} do not fit this device: {most} were measured to"
        )
    for i, part in enumerate(action.parts):
        told = f"part {i} (request {part.request}) has extents {list(part.extents)}"
        if not model.largest(part.extents):
            return ActionCode.BAD_INPUT, f"{told}; {_taken(spec)}"
        if not holds(action.extents, part.extents):
            return ActionCode.BAD_INPUT, f"{told}, and the batch is computed with {list(action.extents)}"
        if spec.exact and part.extents != action.extents:
            return ActionCode.BAD_INPUT, f"{told}, the batch {list(action.extents)}, and the model is never padded"
    return FINE


def _taken(spec: wire.ModelSpec) -> str:
    """Returns which extents the model takes, in a sentence."""
    ranges = ", ".join(f"{dim.name} from {dim.least} to {dim.most}" for dim in spec.dims)
    return f"the model takes {ranges}" if ranges else "the model has no open dimension"
