"""Which batches lanes refuse for their extents, and what they make of outputs whose rows differ in size."""

from collections.abc import Sequence

import numpy as np
import pytest

from gpu_worker.core.fitting import batch_fault, servable
from gpu_worker.core.jobs import Phase
from mesh import wire
from mesh.codes import ActionCode
from mesh.tensors import raw
from tests.gpu_worker.worker_builders import Device

Extents = tuple[int, ...]
DIMS = (wire.Dim(name="h", least=8, most=64), wire.Dim(name="w", least=8, most=32))
IMAGE = wire.TensorSpec(name="x", dtype="uint8", shape=(-1, -1, -1), dims=("h", "w"))
SPEC = wire.ModelSpec(inputs=(IMAGE,), outputs=(IMAGE,), batch_max=8, slo_ms=1.0, dims=DIMS)
PROFILE = wire.Profile(
    exec_s={1: 0.1, 2: 0.2},
    load_s=0.1,
    sizes=tuple(
        wire.SizeTimes(extents=extents, exec_s=dict.fromkeys(range(1, most + 1), 0.1))
        for extents, most in [((16, 32), 8), ((64, 16), 4), ((64, 32), 2)]
    ),
)


def order(extents: Extents, parts: Sequence[tuple[int, Extents]] = (), batch: int = 0, action: int = 1) -> wire.Infer:
    made = tuple(
        wire.Part(frontend="f", request=i, attempt=0, rows=rows, predicted_s=0.1, extents=own)
        for i, (rows, own) in enumerate(parts)
    )
    rows = sum(rows for rows, _ in parts)
    return wire.Infer(
        action=action, ref="m:1", earliest_s=0.0, latest_s=1e9, expected_s=0.1, batch=batch or rows, parts=made,
        extents=extents,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("extents", "parts", "said"),
    [
        ((16, 16), [(1, (8, 16)), (1, (16, 8))], ""),
        ((16, 16), [(1, (16, 17)), (1, (8, 8))], "part 0"),
        ((16, 16), [(1, (8, 8)), (1, (7, 8))], "part 1"),
        ((16, 16), [(1, (8,))], "part 0"),
        ((16, 16), [(1, ())], "part 0"),
        ((7, 16), [(1, (7, 8))], "h from 8 to 64, w from 8 to 32"),
        ((65, 32), [(1, (8, 8))], "h from 8 to 64, w from 8 to 32"),
        ((16,), [(1, (16,))], "h from 8 to 64"),
        ((), [(1, ())], "h from 8 to 64"),
    ],
)
def test_extents_that_the_model_does_not_take_or_the_batch_does_not_hold_are_refused(
    extents: Extents, parts: list[tuple[int, Extents]], said: str
) -> None:
    code, why = batch_fault(servable(SPEC, 1, None), order(extents, parts))
    assert code is (ActionCode.BAD_INPUT if said else None)
    assert said in why


def test_a_batch_beyond_what_was_measured_to_fit_is_refused() -> None:
    model = servable(SPEC, 1, None, PROFILE)
    assert [model.largest(extents) for extents in [(8, 8), (16, 32), (17, 16), (17, 17), (64, 32)]] == [8, 8, 4, 2, 2]
    assert [model.largest(extents) for extents in [(64, 33), (7, 8), (16,)]] == [0, 0, 0]
    assert batch_fault(model, order((16, 32), batch=8)) == (None, "")
    code, why = batch_fault(model, order((17, 16), batch=5))
    assert code is ActionCode.BAD_BATCH
    assert "5 rows" in why
    assert "4" in why
    assert batch_fault(servable(SPEC, 1, None), order((17, 16), batch=5)) == (None, "")


def test_nothing_is_padded_of_an_exact_model() -> None:
    exact = wire.ModelSpec(inputs=(IMAGE,), outputs=(IMAGE,), batch_max=8, slo_ms=1.0, dims=DIMS, exact=True)
    model = servable(exact, 1, None)
    assert batch_fault(model, order((9, 9), [(1, (9, 9)), (2, (9, 9))])) == (None, "")
    assert batch_fault(model, order((9, 9), [(1, (9, 9)), (2, (9, 8))]))[0] is ActionCode.BAD_INPUT


def test_a_model_without_open_dimensions_takes_no_extents() -> None:
    fixed = wire.ModelSpec(inputs=(), outputs=(), batch_max=8, slo_ms=1.0)
    assert batch_fault(servable(fixed, 1, None), order((), batch=2)) == (None, "")
    assert batch_fault(servable(fixed, 1, None), order((3,), batch=2))[0] is ActionCode.BAD_INPUT


# -- lanes ------------------------------------------------------------------------------------------------------------


def executed(device: Device, action: wire.Infer, outputs: list[np.ndarray]) -> list[str]:
    """The device gives these outputs. Returns the effects of the end of OUTPUT."""
    device.order(action, now=10.0)
    device.end(Phase.INPUT, action.action, now=10.0)
    job = device.running[Phase.EXEC, action.action]
    job.outputs, job.output_shapes = [raw(array) for array in outputs], [array.shape for array in outputs]
    device.end(Phase.EXEC, action.action, now=10.0)
    device.results.clear()
    return device.end(Phase.OUTPUT, action.action, now=10.0)


def open_device() -> Device:
    device = Device().loaded()
    device.lanes.prepared("m:1", servable(SPEC, 2, None))
    return device


def test_lanes_refuse_before_anything_begins_and_say_why() -> None:
    device = open_device()
    assert device.order(order((65, 32), [(1, (8, 8))]), now=10.0) == ["infer #1 bad_input, 2 free"]
    assert "h from 8 to 64" in device.results[1].message
    assert device.running == {}


def test_outputs_of_other_shapes_than_promised_reach_nobody() -> None:
    device = open_device()
    action = order((16, 16), [(1, (8, 16)), (1, (16, 16))])
    assert executed(device, action, [np.zeros((2, 16, 16), np.uint8)]) == ["infer #1 ok, 2 free"]
    again = order((16, 16), [(1, (8, 16)), (1, (16, 16))], action=2)
    assert executed(device, again, [np.zeros((2, 16, 15), np.uint8)]) == ["infer #2 bad_outputs, 2 free"]
    assert "output x" in device.results[2].message
