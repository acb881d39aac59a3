"""A shard that serves models with open dimensions: whatever comes, every batch fits, and everybody is answered once."""

import math
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.core.orders import ToWorker
from controller.core.telemetry.snapshot import snapshot
from mesh import wire
from mesh.codes import ActionCode
from mesh.facts import JournalState
from mesh.sizes import Extents, joint
from tests.controller.core.controller_builders import TEN_MS, Shard, hello, prepared, spec
from tests.controller.core.open_models import (
    EDGES,
    IMAGE,
    SEQ,
    Duration,
    OpenMesh,
    encoder,
    open_prepared,
    open_spec,
    pixels,
    sized_profile,
)  # fmt: skip

NOW = 100.0
TEXT_MEMORY, IMAGE_MEMORY = 2048, 4 << 16  # elements of a batch: four of the greatest
CASES: dict[str, tuple[tuple[wire.Dim, ...], Duration, int]] = {
    "texts": (SEQ, encoder, TEXT_MEMORY),
    "images": (IMAGE, pixels, IMAGE_MEMORY),
}

asked = st.lists(
    st.tuples(
        st.floats(0, 0.05), st.floats(0, 1), st.floats(0, 1), st.sampled_from((1, 1, 1, 2, 3)), st.floats(0.02, 1.5)
    ),
    min_size=1,
    max_size=60,
)


def extents_at(dims: tuple[wire.Dim, ...], shares: tuple[float, float]) -> Extents:
    """Small ones are more frequent than great ones."""
    return tuple(
        dim.least + int(share**3 * (dim.most - dim.least)) for dim, share in zip(dims, shares, strict=False)
    )  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(
    asked,
    st.sampled_from(("atc", "clockwork", "fifo")),
    st.sampled_from(sorted(CASES)),
    st.booleans(),
    st.booleans(),
    st.sampled_from((1, 2)),
)
def test_no_batch_is_larger_than_what_fits_and_everybody_is_answered_once(
    requests: list[tuple[float, float, float, int, float]],
    kind: str,
    case: str,
    any_batch: bool,
    exact: bool,
    workers: int,
) -> None:
    dims, duration_s, memory = CASES[case]
    at, came = 0.0, []
    for gap_s, one, other, rows, budget_s in requests:
        at += gap_s
        came.append((at, extents_at(dims, (one, other)), rows, budget_s))
    mesh = OpenMesh(
        open_spec(dims, exact=exact), sized_profile(duration_s, dims, elements_max=memory), duration_s, kind,
        any_batch, workers,
    ).run(came)  # fmt: skip
    assert len(mesh.outcomes) == len(came)
    for batch in mesh.batches:
        assert batch.batch * math.prod(batch.extents) <= memory
        both = joint(part.extents for part in batch.parts)
        if exact:
            assert all(part.extents == batch.extents for part in batch.parts)
        elif any_batch:
            assert batch.extents == both
        else:
            assert all(extent in edges for extent, edges in zip(batch.extents, EDGES[dims], strict=True))
    if kind == "atc":
        assert "late" not in mesh.outcomes.values()


def mix(count: int, rate: float, budget_s: float, seed: int = 5) -> list[tuple[float, Extents, int, float]]:
    """Short queries, and some long passages. Source: the length study's mix."""
    rng, at, found = random.Random(seed), 0.0, []
    for _ in range(count):
        at += rng.expovariate(rate)
        median, sigma, least, most = (9, 0.6, 2, 64) if rng.random() < 0.8 else (80, 0.8, 8, 512)
        found.append((at, (int(min(most, max(least, rng.lognormvariate(math.log(median), sigma)))),), 1, budget_s))
    return found


@pytest.mark.parametrize(("kind", "late_max"), [("atc", 0.05), ("clockwork", 0.1)])
def test_estimates_hold_on_a_device_that_scatters_and_is_slower_than_its_profile(kind: str, late_max: float) -> None:
    def slower(rows: int, extents: Extents) -> float:
        return 1.3 * encoder(rows, extents)

    mesh = OpenMesh(open_spec(), sized_profile(), slower, kind, noise=0.05).run(mix(600, 60.0, 0.5))
    late = sum(outcome == "late" for outcome in mesh.outcomes.values())
    assert late < late_max * len(mesh.outcomes)
    assert mesh.in_time() > 0.7


def serving(report: wire.Prepared | None = None, *, workers: int = 1) -> Shard:
    shard = Shard()
    shard.want(["m:1"])
    for n in range(workers):
        words = hello(f"w{n + 1}", report or open_prepared("m:1", open_spec(), sized_profile()), resident=["m:1"])
        shard.join(words, now=NOW)
    return shard


# -- arrivals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extents", "said"),
    [
        ((), "1 open dimensions have an extent each; the request has 0"),
        ((5, 5), "1 open dimensions have an extent each; the request has 2"),
        ((513,), "seq is 513; it is from 1 to 512"),
    ],
)
def test_extents_that_the_model_does_not_take_are_refused_by_name_and_range(extents: Extents, said: str) -> None:
    shard = serving()
    message = wire.Submit(request=1, attempt=0, ref="m:1", rows=1, budget_s=1.0, weight=1.0, extents=extents)
    (order,) = shard.scheduler.submit(message, "f", age_s=0.0, now=NOW, hollow=True)
    assert isinstance(order.message, wire.Refused)
    assert (order.message.code, order.message.message) == (ActionCode.BAD_INPUT, said)


def test_a_model_without_open_dimensions_takes_no_extents() -> None:
    shard = Shard().serve({"m:1": TEN_MS}, now=NOW)
    assert shard.submit(1, now=NOW, extents=(5,)) == ["f: 1 failed bad_input"]
    assert shard.submit(2, now=NOW) == []


def test_inputs_are_as_long_as_rows_and_extents_say() -> None:
    shard = serving()
    assert shard.submit(1, now=NOW, budget_s=1.0, rows=2, extents=(3,), tensors=[b"x" * 24]) == []
    assert shard.submit(2, now=NOW, rows=2, extents=(3,), tensors=[b"x" * 20]) == ["f: 2 failed bad_input"]
    assert shard.submit(3, now=NOW, rows=2, extents=(3,), tensors=[]) == ["f: 3 failed bad_input"]


def test_strings_are_for_the_worker_to_look_through() -> None:
    texts = wire.TensorSpec(name="text", dtype="string", shape=(-1, 1))
    report = msgspec.structs.replace(prepared("m:1"), spec=msgspec.structs.replace(spec(), inputs=(texts,)))
    shard = serving(report)
    assert shard.submit(1, now=NOW, tensors=[b"\1\0\0\0a"]) == []
    assert shard.submit(2, now=NOW, tensors=[]) == ["f: 2 failed bad_input"]


def test_what_fits_into_no_memory_is_refused_at_once_with_what_would_fit() -> None:
    shard = serving(open_prepared("m:1", open_spec(), sized_profile(elements_max=2048)))
    message = wire.Submit(request=1, attempt=0, ref="m:1", rows=5, budget_s=9.0, weight=1.0, extents=(500,))
    (order,) = shard.scheduler.submit(message, "f", age_s=0.0, now=NOW, hollow=True)
    assert isinstance(order.message, wire.Refused)
    assert order.message.code == ActionCode.BAD_BATCH
    assert order.message.message == "5 rows with seq 500 do not fit; at most 4 do"
    assert shard.submit(2, now=NOW, budget_s=9.0, rows=4, extents=(500,)) == []


# -- batches ----------------------------------------------------------------------------------------------------------


def sent(shard: Shard, now: float) -> list[wire.Infer]:
    orders = shard.orders(now)
    return [o.message for o in orders if isinstance(o, ToWorker) and isinstance(o.message, wire.Infer)]


def test_a_batch_tells_each_request_s_extents_and_what_is_computed() -> None:
    shard = serving()
    shard.submit(1, now=NOW, budget_s=1.0, extents=(100,))
    shard.submit(2, now=NOW, budget_s=1.0, extents=(110,))
    (infer,) = sent(shard, NOW)
    assert (infer.extents, infer.batch) == ((110,), 2)
    assert sorted(part.extents for part in infer.parts) == [(100,), (110,)]


def test_results_teach_by_extents_and_padding_is_counted() -> None:
    shard = serving()
    shard.submit(1, now=NOW, budget_s=1.0, extents=(100,))
    shard.submit(2, now=NOW, budget_s=1.0, extents=(110,))
    (infer,) = sent(shard, NOW)
    curve = shard.state.devices["w1"].curves["m:1"]
    before_s = curve.exec_s(2, (110,))
    shard.ran(infer.action, begin_s=NOW, duration_s=2 * before_s)
    assert curve.exec_s(2, (110,)) > before_s
    told = snapshot(
        shard.scheduler, name="c", policy="atc", started_s=0.0, heard_s=lambda worker: NOW,
        journal=JournalState(on=False), now=NOW,
    )  # fmt: skip
    assert (told.elements, told.elements_computed) == (210, 220)
    assert (told.records["m"].elements, told.records["m"].elements_computed) == (210, 220)


def test_a_batch_that_failed_is_tried_apart_with_the_extents_of_those_that_are_left() -> None:
    shard = serving()
    for number, extents in enumerate([(100,), (105,), (110,), (101,)]):
        shard.submit(number, now=NOW, budget_s=5.0, extents=extents)
    (infer,) = sent(shard, NOW)
    assert infer.batch == 4
    shard.result(infer.action, now=NOW + 0.1, code=ActionCode.MODEL_ERROR, begin_s=NOW, end_s=NOW + 0.1)
    apart = sent(shard, NOW + 0.1)
    assert apart
    for half in apart:
        assert half.batch == len(half.parts) == 2
        assert half.extents == joint(part.extents for part in half.parts)


def test_a_batch_that_did_not_fit_in_memory_is_nobody_s_fault_and_goes_in_smaller_ones() -> None:
    shard = serving()
    for number, extents in enumerate([(100,), (105,), (110,), (101,)]):
        shard.submit(number, now=NOW, budget_s=5.0, extents=extents, client=7)
    (infer,) = sent(shard, NOW)
    told = shard.result(infer.action, now=NOW + 0.1, code=ActionCode.NO_MEMORY, begin_s=NOW, end_s=NOW + 0.1)
    assert told == []
    curve = shard.state.devices["w1"].curves["m:1"]
    assert (curve.joint_max((110,)), curve.joint_max((512,)), curve.joint_max((64,))) == (2, 2, 32)
    again = sent(shard, NOW + 0.1)
    assert [batch.batch for batch in again] == [2]
    assert not shard.scheduler.isolation.watched


def test_a_request_that_does_not_fit_alone_has_failed_and_others_like_it_are_refused_at_once() -> None:
    shard = serving()
    shard.submit(1, now=NOW, budget_s=5.0, extents=(500,), client=7)
    (infer,) = sent(shard, NOW)
    told = shard.result(infer.action, now=NOW + 0.1, code=ActionCode.NO_MEMORY, begin_s=NOW, end_s=NOW + 0.1)
    assert told == ["f: 1 failed no_memory"]
    assert shard.submit(2, now=NOW + 0.1, budget_s=5.0, extents=(510,)) == ["f: 2 failed bad_batch"]
    assert shard.submit(3, now=NOW + 0.1, budget_s=5.0, extents=(200,)) == []


def test_a_lost_worker_s_requests_go_with_their_extents_to_another() -> None:
    shard = serving(workers=2)
    shard.submit(1, now=NOW, budget_s=5.0, extents=(70,))
    (infer,) = sent(shard, NOW)
    shard.leave("w1")
    shard.lose("w1", now=NOW + 0.01)
    again = sent(shard, NOW + 0.01)
    assert [i.extents for i in again] in ([(70,)], [])  # [] where it was w2's
    assert infer.extents == (70,)


# -- who can serve ----------------------------------------------------------------------------------------------------


def test_a_device_that_was_not_measured_by_extents_cannot_serve_and_says_why() -> None:
    shard = Shard()
    shard.want(["m:1"])
    old = open_prepared("m:1", open_spec(), wire.Profile(exec_s={1: 0.01, 8: 0.02}, load_s=0.01))
    told = shard.join(hello("w1", old, resident=["m:1"]), now=NOW)
    assert any("failed: its profile does not say how long it takes by extents" in line for line in told)
    assert "m:1" not in shard.state.models


def test_a_container_with_open_dimensions_serves_short_and_long() -> None:
    shard = Shard()
    shard.want(["m:1"], contained=["m:1"])
    report = wire.Prepared(
        ref="m:1", ok=True, spec=open_spec(), pages=1, weights_bytes=1,
        batching=wire.Batching(method="aimd", objective_s=0.1),
    )  # fmt: skip
    words = hello("w1", report)
    device = msgspec.structs.replace(words.device, container="m:1", pages=1)
    shard.join(msgspec.structs.replace(words, device=device), now=NOW)
    at = NOW
    for number, extents in enumerate([(512,), (16,), (100,)]):
        assert shard.submit(number, now=at, budget_s=1.0, extents=extents) == []
        (infer,) = sent(shard, at)
        assert infer.extents == extents
        shard.ran(infer.action, begin_s=at, duration_s=encoder(1, extents))
        at += 0.2
