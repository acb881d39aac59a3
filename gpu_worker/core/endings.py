"""How an action ended: what the lanes report to the controller. Pure."""

from gpu_worker.core.cutting import Indivisible, cut_outputs
from gpu_worker.core.jobs import Done, Job, Report
from mesh import wire
from mesh.codes import ActionCode, ActionKind
from mesh.wire.ranges import cut

OK = ActionCode.OK
LOAD, UNLOAD, INFER = ActionKind.LOAD, ActionKind.UNLOAD, ActionKind.INFER


def load_ended(job: Job, done: Done, free_pages: int) -> Report:
    """The LOAD went well."""
    result = wire.ActionResult(
        action=job.action.action,
        kind=LOAD,
        code=OK,
        received_s=job.received_s,
        free_pages=free_pages,
        begin_s=done.begin_s,
        end_s=done.end_s,
        duration_s=done.duration_s,
    )
    return Report(result, job)


def infer_ended(job: Job, output: Done, free_pages: int) -> Report:
    """The INFER went well; `output` is how its last phase went."""
    assert job.exec is not None
    assert job.input is not None
    ran, incoming = job.exec, job.incoming
    result = wire.ActionResult(
        action=job.action.action,
        kind=INFER,
        code=OK,
        received_s=job.received_s,
        free_pages=free_pages,
        begin_s=ran.begin_s,
        end_s=ran.end_s,
        duration_s=ran.duration_s,
        input_s=job.input.duration_s,
        output_s=output.duration_s,
        gathered=ran.gathered,
        clock_mhz=ran.clock_mhz,
        fetched_bytes=incoming.fetched_bytes if incoming is not None else 0,
        fetch_s=incoming.fetch_s if incoming is not None else None,
        missing=tuple(sorted(incoming.missing)) if incoming is not None else (),
        ended=tuple(sorted(incoming.ended)) if incoming is not None else (),
    )
    return Report(result, job)


def unload_ended(action: wire.Unload, code: ActionCode, free_pages: int, now: float) -> Report:
    """The UNLOAD was done, or refused, at `now`."""
    result = wire.ActionResult(
        action=action.action,
        kind=UNLOAD,
        code=code,
        received_s=now,
        free_pages=free_pages,
        begin_s=now,
        end_s=now,
    )
    return Report(result)


def failed(job: Job, code: ActionCode, free_pages: int, message: str) -> Report:
    """The LOAD or INFER did not go well."""
    incoming = job.incoming
    result = wire.ActionResult(
        action=job.action.action,
        kind=LOAD if isinstance(job.action, wire.Load) else INFER,
        code=code,
        received_s=job.received_s,
        free_pages=free_pages,
        message=cut(message),
        fetched_bytes=incoming.fetched_bytes if incoming is not None else 0,
        fetch_s=incoming.fetch_s if incoming is not None else None,
        missing=tuple(sorted(incoming.missing)) if incoming is not None else (),
        ended=tuple(sorted(incoming.ended)) if incoming is not None else (),
    )
    return Report(result, job)


def wrong_outputs(job: Job) -> str:
    """Why nobody may get a row of the job's outputs, whatever the device says of them; empty if they are right.

    Rows are told apart by their bytes alone: if an output has one row too many, each client gets its neighbour's row.
    Where rows differ in size, what each part gets is cut now, unless the device has done that.
    """
    action = job.action
    assert isinstance(action, wire.Infer)
    if job.spec is not None:
        return _cut(job, job.spec, action)
    found = [len(output) for output in job.outputs]
    wanted = [size * action.batch for size in job.output_row_bytes]
    return "" if found == wanted else f"outputs of {found} bytes; {action.batch} rows take {wanted}"


def _cut(job: Job, spec: wire.ModelSpec, action: wire.Infer) -> str:
    if job.cut is None:
        try:
            job.cut = cut_outputs(spec, action, job.outputs, job.output_shapes)
        except Indivisible as error:
            return str(error)
    return ""
