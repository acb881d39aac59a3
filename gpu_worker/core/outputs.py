"""Splits a batch's outputs into what is sent to each frontend. Pure."""

from collections.abc import Sequence
from typing import Final

from gpu_worker.core.cutting import Cut, Shape
from mesh import wire
from mesh.tensors import byte_count

INLINE_BYTES_MAX: Final = wire.INLINE_BYTES_MAX  # a constant of this module, which compiled code does not look up
Shares = dict[str, tuple[list[wire.Answer], list[memoryview]]]  # {frontend: (answers, their frames)}


def row_bytes(specs: Sequence[wire.TensorSpec]) -> tuple[int, ...]:
    """Returns the bytes of one row of each tensor."""
    return tuple(byte_count(spec.dtype, spec.shape[1:]) for spec in specs)


def outputs_by_frontend(
    action: wire.Infer, outputs: Sequence[memoryview], device: str, exec_s: float, cut: Cut | None = None
) -> dict[str, tuple[wire.Outputs, list[memoryview]]]:
    """Returns {frontend: (its message, its frames)}; `outputs` hold the rows of all parts, in the parts' order.

    Each output has exactly as many bytes as the rows of the batch take: the lanes checked it. Where rows differ in
    size, `cut` has what each part gets instead.
    """
    if cut is None and len(outputs) == 1:
        quick = _of_one_output(action, outputs[0], device, exec_s)
        if quick is not None:
            return quick
    shares: Shares = {}
    widths = [len(output) // action.batch for output in outputs] if cut is None else []
    row = 0
    for i, part in enumerate(action.parts):
        shapes: tuple[Shape, ...] = ()
        if cut is None:
            pieces = tuple(
                output[row * width : (row + part.rows) * width] for output, width in zip(outputs, widths, strict=True)
            )
        else:
            pieces, shapes = cut.portions[i].tensors, cut.portions[i].shapes
        row += part.rows
        answers, frames = shares.setdefault(part.frontend, ([], []))
        inline = sum(map(len, pieces)) <= INLINE_BYTES_MAX
        answers.append(
            wire.Answer(
                request=part.request,
                attempt=part.attempt,
                rows=part.rows,
                predicted_s=part.predicted_s,
                cold=part.cold,
                inline=pieces if inline else (),
                frames=0 if inline else len(pieces),
                shapes=shapes,
            )
        )
        if not inline:
            frames.extend(pieces)
    return _messages(action, shares, device, exec_s, row)


def _messages(
    action: wire.Infer, shares: Shares, device: str, exec_s: float, rows: int
) -> dict[str, tuple[wire.Outputs, list[memoryview]]]:
    """{frontend: (its message, its frames)}. `rows`: of the batch, without padding."""
    ref, batch = action.ref, action.batch
    found: dict[str, tuple[wire.Outputs, list[memoryview]]] = {}
    for frontend, (answers, frames) in shares.items():
        message = wire.Outputs(
            ref=ref, device=device, batch=batch, exec_s=exec_s, answers=tuple(answers), rows=rows, frontend=frontend
        )
        found[frontend] = (message, frames)
    return found


def _of_one_output(
    action: wire.Infer, output: memoryview, device: str, exec_s: float
) -> dict[str, tuple[wire.Outputs, list[memoryview]]] | None:
    """Returns the same for one output whose parts are all small enough to travel inside the message, in a tenth of the
    time; None if one is not.
    """
    width = len(output) // action.batch
    rows_max = INLINE_BYTES_MAX // width if width else action.batch
    shares: Shares = {}
    frontend = ""  # of the last part, with its answers: most batches are one frontend's
    answers: list[wire.Answer] = []
    row = at = 0
    for part in action.parts:
        rows = part.rows
        if rows > rows_max:
            return None
        if part.frontend != frontend or not answers:
            frontend = part.frontend
            answers = shares.setdefault(frontend, ([], []))[0]
        row += rows
        end = row * width
        answers.append(
            wire.Answer(
                request=part.request,
                attempt=part.attempt,
                rows=rows,
                predicted_s=part.predicted_s,
                inline=(output[at:end],),
                cold=part.cold,
            )
        )
        at = end
    return _messages(action, shares, device, exec_s, row)
