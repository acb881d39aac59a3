"""frontend/core/openings.py: the quick way of plain requests, which makes the same calls as the one for all."""

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.core import protocol
from frontend.core.open_calls import Call
from frontend.core.openings import BESIDE_MAX, Openings, Tensors
from frontend.core.protocol import RequestRefused
from frontend.core.requests import RequestTable
from frontend.core.targets import Targets
from mesh import wire
from tests.frontend.core.client_messages import ONE, ROWS_MAX, TWO, infer, outcome, tensor

OPEN = wire.ModelSpec(
    inputs=(wire.TensorSpec(name="x", dtype="uint8", shape=(-1, -1), dims=("n",)),),
    outputs=ONE.outputs, batch_max=8, slo_ms=50.0, dims=(wire.Dim(name="n", least=1, most=9),),
)  # fmt: skip
TEXT = wire.ModelSpec(
    inputs=(wire.TensorSpec(name="x", dtype="string", shape=(-1,)),), outputs=ONE.outputs, batch_max=8, slo_ms=50.0
)
MODELS = {"m": ONE, "two": TWO, "open": OPEN, "text": TEXT}
SLO_MS_MAX = 1000.0


def openings(in_flight_max: int = 100, bytes_max: int = 1 << 20) -> tuple[Openings, RequestTable]:
    targets = Targets(ROWS_MAX)
    targets.table_changed(
        wire.ModelEntry(name=name, current="1", target=None, versions=("1",), owner="c", spec=spec)
        for name, spec in MODELS.items()
    )
    table = RequestTable(in_flight_max, bytes_max)
    return Openings(table, targets, SLO_MS_MAX), table


FIELDS = (
    "client", "id", "ref", "spec", "rows", "received_s", "deadline_s", "framed", "weight", "ask", "asked_id", "asker",
    "extents", "rules", "form", "parts", "size", "missing", "answered", "flight", "malformed", "first",
)  # fmt: skip


def fields_of(call: Call) -> dict[str, Any]:
    return {name: getattr(call, name) for name in FIELDS}


class Both:
    """One request, looked at in both ways by a table of its own."""

    def __init__(self, made: Openings, table: RequestTable, message: Any, frames: Any = (), asker: int = 5) -> None:
        header = msgpack.packb(message)
        self.request: Any = protocol.decode(header)
        self.frames, self.size = list(frames), len(header)
        self.made, self.table, self.asker = made, table, asker

    def plain(self) -> tuple[Call, Tensors] | None:
        return self.made.plain("ann", self.request, self.frames, self.size, 100.0, self.asker)

    def checked(self) -> tuple[Call, Tensors]:
        if self.table.holds("ann", self.request.id):
            raise protocol.duplicate(self.request.id)
        target = self.made.targets.of(self.request)
        return self.made.checked("ann", self.request, self.frames, self.size, 100.0, self.asker, target)


MOSTLY = st.sampled_from([True] * 9 + [False])
INPUTS = st.builds(
    tensor,
    name=st.sampled_from(["x"] * 9 + ["y"]),
    dtype=st.sampled_from(["float32"] * 9 + ["float64", "uint8", "string", ""]),
    shape=st.one_of(
        st.integers(-1, ROWS_MAX + 2).map(lambda rows: [rows, 2, 3]), st.lists(st.integers(-1, 4), max_size=4)
    ),
    data=st.one_of(st.integers(0, ROWS_MAX + 1).map(lambda rows: bytes(24 * rows)), st.binary(max_size=4), st.none()),
)


@st.composite
def fitting(draw: Any) -> dict[str, Any]:
    """An input that fits model m, mostly."""
    rows = draw(st.integers(1, ROWS_MAX))
    return tensor(shape=[rows, 2, 3], data=bytes(24 * (rows if draw(MOSTLY) else rows + 1)))


MESSAGES = st.fixed_dictionaries(
    {
        "inputs": st.one_of(st.lists(fitting(), min_size=1, max_size=1), st.lists(INPUTS, max_size=3)),
        "model": st.sampled_from(["m"] * 9 + ["two", "open", "text", "none", "", None]),
        "id": st.sampled_from([7, "seven", 0, -1]),
        "slo_ms": st.sampled_from([None, 50, 0.5, 1000, 1000.5, 0, -1, float("nan"), float("inf")]),
        "weight": st.sampled_from([1.0, 1, 0.01, 100, 0.001, 101, float("nan")]),
        "cache": st.booleans(),
        "asked_id": st.one_of(st.none(), st.text(max_size=100)),
    },
    optional={
        "version": st.sampled_from([None, "1", "2", "x"]),
        "context": st.sampled_from([None, "c"]),
        "app": st.sampled_from([None, "a"]),
    },
)


@given(
    message=MESSAGES, frames=st.lists(st.sampled_from([bytes(24), bytes(48), b""]), max_size=2), framed=MOSTLY,
    draining=MOSTLY, taken=MOSTLY, in_flight_max=st.sampled_from([1, 4, 100]),
    bytes_max=st.sampled_from([1, 400, 1 << 20]), asker=st.sampled_from([5, 6]),
)  # fmt: skip
def test_what_the_quick_way_takes_becomes_the_same_call_in_the_other_way(
    message: dict[str, Any], frames: list[bytes], framed: bool, draining: bool, taken: bool, in_flight_max: int,
    bytes_max: int, asker: int,
) -> None:  # fmt: skip
    if framed:
        frames = []
    elif len(message["inputs"]) == 1:
        message["inputs"][0].pop("data")
    made, table = openings(in_flight_max, bytes_max)
    made.draining = not draining
    if not taken:
        table.open(Call("ann", 7, "m:1", ONE, 1, 100.0, 101.0, False, asker=5), [bytes(24)])
    both = Both(made, table, infer(**message), frames, asker)
    before = (len(table), table.bytes_held)
    plain = both.plain()
    assert (len(table), table.bytes_held) == before, "looking changes nothing"
    checked = outcome(both.checked)
    if plain is None:
        return
    assert not isinstance(checked, RequestRefused), checked
    assert fields_of(plain[0]) == fields_of(checked[0])
    assert [bytes(data) for data in plain[1]] == [bytes(data) for data in checked[1]]


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"id": "seven"}, {"slo_ms": None}, {"slo_ms": 1000}, {"weight": 0.01}, {"weight": 100}, {"cache": False},
        {"asked_id": "x" * 100}, {"inputs": [tensor(shape=[ROWS_MAX, 2, 3], data=bytes(24 * ROWS_MAX))]},
    ],
)  # fmt: skip
def test_the_quick_way_takes_what_is_plain(fields: dict[str, Any]) -> None:
    made, table = openings()
    assert Both(made, table, infer(**fields)).plain() is not None
    if "inputs" not in fields:
        framed = infer(**fields, inputs=[tensor(data=...)])
        taken = Both(made, table, framed, [bytes(24)]).plain()
        assert taken is not None
        assert taken[0].framed


@pytest.mark.parametrize(
    "fields",
    [
        {"version": "1"}, {"context": "c"}, {"model": None}, {"model": "none"}, {"model": "two"}, {"model": "open"},
        {"slo_ms": 1001}, {"slo_ms": 0}, {"weight": 0.001}, {"inputs": []}, {"inputs": [tensor(name="y")]},
        {"inputs": [tensor(dtype="float64")]}, {"inputs": [tensor(data=bytes(23))]}, {"inputs": [tensor(shape=[])]},
        {"inputs": [tensor(shape=[1, 3, 2])]}, {"inputs": [tensor(data=None)]}, {"inputs": [tensor(), tensor()]},
    ],
)  # fmt: skip
def test_the_quick_way_leaves_all_else_to_the_other_one(fields: dict[str, Any]) -> None:
    made, table = openings()
    assert Both(made, table, infer(**fields)).plain() is None


def test_what_a_message_has_beside_its_tensors_is_not_kept_with_them() -> None:
    made, table = openings()
    large = infer(asked_id="x" * (BESIDE_MAX + 1))
    both = Both(made, table, large)
    assert both.plain() is None
    _, (data,) = both.checked()
    assert type(data) is bytes
    small = Both(made, table, infer())
    _, (data,) = small.checked()
    assert type(data) is memoryview


def test_nor_with_those_of_a_question_to_an_application() -> None:
    made, table = openings()
    for beside, alone in (("x" * (BESIDE_MAX + 1), True), ("x", False)):
        both = Both(made, table, infer(app="app", model=None, asked_id=beside))
        before = both.request.inputs[0].data
        made.check_question(both.request, both.frames, both.size, both.asker)
        after = both.request.inputs[0].data
        assert (after == before, after.obj is not before.obj) == (True, alone)
    made.draining = True
    assert outcome(lambda: made.check_question(both.request, both.frames, both.size, both.asker)).status == "rejected"


def test_what_makes_a_check_raise_costs_that_request_alone() -> None:
    made, table = openings()
    both = Both(made, table, infer())
    both.request.weight = "heavy"  # as no decoder lets through
    refusal = outcome(both.checked)
    assert (refusal.code, refusal.id, len(table)) == ("internal_error", 7, 0)
    assert isinstance(refusal.__cause__, TypeError)
