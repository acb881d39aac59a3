"""What an ONNX file gives when it is run: the rows that it is run on, and its outputs, found at several sizes."""

import contextlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from gpu_worker.devices.execution.onnx import OnnxForward, message_of
from gpu_worker.packages import batches, examples, given_rows, trials
from gpu_worker.packages.apart import of_extents
from gpu_worker.packages.importing.shapes import Probed, counts, output_spec, output_specs, probes
from gpu_worker.packages.importing.signature import check_names
from gpu_worker.packages.sizing import Sizing
from mesh import wire
from mesh.codes import PackageCode
from mesh.errors import PackageError

Array = np.ndarray[Any, Any]


def run(forward: OnnxForward, weights: Mapping[str, Array], given: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Returns the outputs. Raises: RuntimeError with a sentence for people."""
    try:
        return forward(*(torch.from_numpy(weight) for weight in weights.values()), *given)
    except Exception as error:  # onnxruntime raises its own errors
        raise RuntimeError(message_of(error)) from None


def whole(forward: OnnxForward, given: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Returns the file's outputs as they are served: a number that holds for the batch is repeated for each row."""
    return [tensor if tensor.ndim else tensor.expand(len(given[0])) for tensor in run(forward, {}, given)]


def draw_of(
    place: str,
    sizing: Sizing,
    forward: OnnxForward,
    example: Mapping[str, Any] | None,
    batch_max: int,
) -> batches.Draw:
    """Returns how inputs are drawn: from the given rows, or at random. Raises: PackageError."""
    if example is not None:
        kept = given_rows.given(place, sizing.inputs, example, batch_max, sizing)
        rows = kept.draw(min(2, batch_max), torch.Generator().manual_seed(batches.SEED))
        with contextlib.suppress(RuntimeError):  # rows that it fails on are reported where its outputs are found
            given_rows.check_shows(place, run(forward, {}, rows))
        return kept.draw
    specs = sizing.inputs
    found, why = examples.find(specs, partial(whole, forward), batch_max, sizing)
    if found is None:
        assert why is not None
        fewest, _ = examples.find(specs, partial(whole, forward), 1, sizing) if batch_max > 1 else (None, None)
        if fewest is not None:
            raise fixed_fault(place, why, sizing)
        raise PackageError(place, [examples.not_run(examples.message_of(why))], PackageCode.FORWARD_FAILED)
    return found.draw


def outputs_of(
    place: str, forward: OnnxForward, draw: batches.Draw, batch_max: int, sizing: Sizing, tellers: Mapping[str, str]
) -> tuple[wire.TensorSpec, ...]:
    """Returns the outputs' dtypes and shapes, found by running some rows. Raises: PackageError."""
    check_names(place, "outputs", forward.outputs)
    if sizing.dims or tellers:
        return _open_outputs(place, forward, draw, batch_max, sizing, tellers)
    rows = counts(batch_max)
    generator = torch.Generator().manual_seed(batches.SEED)
    found, why = [], None
    for count in dict.fromkeys((*rows, 1)):
        try:
            found.append(whole(forward, draw(count, generator)))
        except RuntimeError as error:
            why = why or error
    if why is not None and found:
        raise fixed_fault(place, why, sizing)
    if why is not None:
        raise PackageError(place, [f"the graph fails: {examples.message_of(why)}"], PackageCode.FORWARD_FAILED)
    few, more = found[0], found[len(set(rows)) - 1]
    pairs = zip(forward.outputs, few, more, strict=True)
    return tuple(output_spec(place, name, one, other, rows) for name, one, other in pairs)


def _open_outputs(
    place: str, forward: OnnxForward, draw: batches.Draw, batch_max: int, sizing: Sizing, tellers: Mapping[str, str]
) -> tuple[wire.TensorSpec, ...]:
    """As `outputs_of`, of a graph with open dimensions, or with outputs that have a leading dimension of their own."""
    seen = []
    for inputs in probes(draw, sizing, batch_max):
        extents = sizing.of(inputs)
        try:
            seen.append(Probed(len(inputs[0]), extents, whole(forward, inputs)))
        except RuntimeError as error:
            of = f"{trials.counted(len(inputs[0]))}{of_extents(sizing, extents)}"
            why = f"the graph fails on {of}: {examples.message_of(error)}. It must take any extents that dims allows"
            raise PackageError(place, [why], PackageCode.FORWARD_FAILED) from None
    return tuple(output_specs(place, forward.outputs, sizing, tellers, seen))


def fixed_fault(place: str, why: Exception, sizing: Sizing) -> PackageError:
    """Returns the error for a graph that runs on some numbers of rows only, or of some extents."""
    of = f", or of some extents of {' and '.join(dim.name for dim in sizing.dims)}," if sizing.dims else ""
    told = f"the graph runs on some numbers of rows{of} only: {examples.message_of(why)}"
    mend = (
        "export the model with a first dimension that is free, and without numbers in place of it; or give batch_max=1"
    )
    return PackageError(place, [f"{told}. It must take any up to batch_max: {mend}"], PackageCode.BATCH_FIXED)
