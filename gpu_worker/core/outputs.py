"""Splits a batch's outputs into what is sent to each frontend. Pure."""

from collections.abc import Sequence

from gpu_worker.core.cutting import Cut, Shape
from mesh import wire
from mesh.tensors import byte_count


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
    shares: dict[str, tuple[list[wire.Answer], list[memoryview]]] = {}
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
        inline = sum(map(len, pieces)) <= wire.INLINE_BYTES_MAX
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
    return {
        frontend: (
            wire.Outputs(
                ref=action.ref,
                device=device,
                batch=action.batch,
                exec_s=exec_s,
                answers=tuple(answers),
                rows=row,
                frontend=frontend,
            ),
            frames,
        )
        for frontend, (answers, frames) in shares.items()
    }
