"""mesh/wire/: every message survives encoding and decoding, and nothing else is accepted."""

import typing
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import wire
from tests.facts import ACTION, REQUEST, SNAPSHOT

UNIONS = {
    "ToBroker": wire.ToBroker,
    "FromBroker": wire.FromBroker,
    "ToController": wire.ToController,
    "FromControllerToFrontend": wire.FromControllerToFrontend,
    "FromControllerToWorker": wire.FromControllerToWorker,
    "FromControllerToOperator": wire.FromControllerToOperator,
    "ToResults": wire.ToResults,
    "FromResults": wire.FromResults,
}
DECODERS: dict[str, Any] = {name: msgspec.msgpack.Decoder(wire.Envelope[union]) for name, union in UNIONS.items()}

TENSOR = wire.TensorSpec(name="x", dtype="float32", shape=(-1, 3, -1, 224), dims=("", "h", ""), pad=-1.5)
FOUND = wire.TensorSpec(name="boxes", dtype="float32", shape=(-1, 4), owner="owner", count="count")
SPEC = wire.ModelSpec(
    inputs=(TENSOR,),
    outputs=(TENSOR, FOUND),
    batch_max=8,
    slo_ms=12.5,
    cacheable=False,
    labels=("cat", "dog"),
    batch_sizes=(1, 2, 8),
    build="abc.1",
    dims=(wire.Dim(name="h", least=1, most=512),),
    exact=True,
)
PROFILE = wire.Profile(
    exec_s={1: 0.001, 8: 0.004},
    load_s=0.5,
    exec_p99_s={1: 0.002},
    engine="eager",
    sizes=(wire.SizeTimes(extents=(512,), exec_s={1: 0.001}),),
)
OFFER = wire.Offer(ref="m:1", spec=SPEC, code="abc")
MEMBER = wire.Member(
    id="frontend-1", role="frontend", host="boot", endpoints={"clients": ("tcp://a:1", "b")}, pid=7, offer=OFFER
)
ENTRY = wire.ModelEntry(
    name="m",
    current="1",
    target="2",
    versions=("1", "2"),
    owner="controller-1",
    spec=SPEC,
    fault="no graph",
    container=True,
    contents={"1": "0f3c", "2": "9a"},
    tries=3,
    unserved=True,
    fault_code="content_changed",
)
PREPARED = wire.Prepared(
    ref="m:1",
    ok=True,
    faults=("none",),
    spec=SPEC,
    pages=3,
    weights_bytes=2**40,
    profile=PROFILE,
    measure=((1, 5, ()), (8, 3, (7, 9))),
    batching=wire.Batching(method="fixed", objective_s=0.01, size=8, wait_s=0.002),
    content="0f3c",
    code="content_changed",
    order=11,
)
KEPT = wire.Kept(
    sizes=(3, 600_000), slot=wire.Slot(segment="12.5.ab", offset=4096, generation=9), whole=2**61, sample=5
)
PART = wire.Part(
    frontend="frontend-1",
    request=1,
    attempt=2,
    rows=3,
    predicted_s=0.01,
    inline=(memoryview(b"abc"),),
    frames=0,
    extents=(7,),
    kept=KEPT,
)
ANSWER = wire.Answer(
    request=1,
    attempt=2,
    rows=3,
    predicted_s=0.01,
    inline=(memoryview(b""), memoryview(b"xyz")),
    shapes=((3, 4),),
    kept=KEPT,
)

SUBMIT = wire.Submit(
    request=1,
    attempt=2,
    ref="m:1",
    rows=3,
    budget_s=0.05,
    weight=2.0,
    inline=(memoryview(b"abc"),),
    frames=4,
    client=5,
    asked_id="mine",
    call=7,
    extents=(7,),
    kept=KEPT,
)
INFER = wire.Infer(
    action=1,
    ref="m:1",
    earliest_s=1.5,
    latest_s=2.5,
    expected_s=0.25,
    batch=4,
    parts=(PART, PART),
    overdue_s=4.5,
    cold_s=1.5,
    extents=(7, 9),
)
MESSAGES: list[Any] = [  # one of each, with no field at its default
    wire.Table(
        epoch=2**40,
        members=(MEMBER,),
        models=(ENTRY,),
        apps=(wire.AppEntry(name="a", definition={"models": ["m"], "policy_args": {"eta": 0.5}}, revision=2),),
        shards={"controller-1": 5},
        workers={"gpu_worker-1": "controller-1"},
    ),
    wire.Heartbeat(),
    wire.Introduce(),
    wire.Goodbye(),
    wire.Register(member=MEMBER, epoch=9, seen=11),
    wire.TableTaken(epoch=2**40),
    wire.Deploy(call=1, name="m", version="2"),
    wire.Undeploy(call=1, name="m"),
    wire.Rollback(call=1, name="m", version="1"),
    wire.PutApp(call=1, definition={"name": "a", "default": None, "n": [1, 2.5, "x", b"raw"]}, create=True),
    wire.DropApp(call=1, name="a"),
    wire.ClaimVersion(call=1, name="f", content="0f3c", version="2"),
    wire.GetTable(call=1),
    wire.GetCatalogue(call=1),
    wire.CallWaits(call=4, reason="no_worker", message="no worker is there"),
    wire.CatalogueReply(
        call=1,
        models=(wire.KnownModel(name="m", current="2", previous="1", contents={"1": "0f3c"}),),
        repository="/models",
        host="here",
        machine="box",
        inode=7,
    ),
    wire.CallReply(
        call=1,
        ok=False,
        message="no",
        faults=("a", "b"),
        revision=3,
        field="app.name",
        code="version_exists",
        version="2",
    ),
    wire.PrepareReport(
        ref="m:1",
        ok=False,
        spec=SPEC,
        faults=("no graph",),
        content="0f3c",
        code="content_changed",
        ready=False,
        tries=3,
    ),
    wire.AskSnapshot(call=1),
    wire.SnapshotReply(call=1, snapshot=SNAPSHOT),
    wire.AskFacts(call=1, stop=True),
    wire.FactsReply(call=1, now_s=2.5, facts=(REQUEST, ACTION), dropped=3, more=True),
    wire.FrontendHello(member="frontend-1", host="boot", results=("memory://1/results", "tcp://a:1")),
    SUBMIT,
    wire.Cancel(request=1, outcome="timed_out"),
    wire.Refused(
        request=1,
        attempt=2,
        status="rejected",
        code="late",
        message="no",
        predicted_s=0.5,
        retry_after_s=0.25,
        alone=True,
    ),
    wire.ClientSuspected(client=7, ref="m:1", code="container_died", pause_s=2.0),
    wire.Serving(added=("m:1",), removed=("n:1",), reset=True, controller="controller-1"),
    PREPARED,
    wire.WorkerHello(
        member="gpu_worker-1",
        host="boot",
        device=wire.DeviceInfo(
            name="cpu:0", kind="cpu", pages=64, page_bytes=1 << 21, any_batch=True, memory_note="2 GiB", container="m:1"
        ),
        free_pages=60,
        resident=("m:1",),
        prepared=(PREPARED,),
    ),
    wire.Welcome(controller="controller-1"),
    wire.Frontends(results={"frontend-1": ("tcp://a:1",)}),
    wire.Prepare(ref="m:1", content="0f3c", order=5),
    wire.Forget(ref="m:1", order=6),
    wire.Load(action=1, ref="m:1", earliest_s=1.5, latest_s=2.5, expected_s=0.25),
    wire.Unload(action=1, ref="m:1"),
    INFER,
    wire.Revoke(action=1),
    wire.ActionResult(
        action=1,
        kind="infer",
        code="ok",
        received_s=1.0,
        free_pages=3,
        message="fine",
        begin_s=1.5,
        end_s=1.75,
        duration_s=0.25,
        input_s=0.125,
        output_s=0.0625,
        gathered=True,
        clock_mhz=1980.0,
        fetched_bytes=600_000,
        fetch_s=0.002,
        missing=(1, 3),
        ended=(2,),
    ),
    wire.Fetch(request=1, attempt=2),
    wire.Fetched(request=1, attempt=2, frames=3),
    wire.Outputs(
        ref="m:1",
        device="cpu:0",
        batch=4,
        exec_s=0.25,
        answers=(ANSWER, ANSWER),
        rows=3,
        frontend="frontend-1",
        number=7,
        oldest=5,
        again=True,
    ),
    wire.Taken(number=6, slots=False),
    wire.HelloRefused(code="bad_address", message="0 addresses"),
    wire.IntakeLag(lag_s=0.02),
]
PLACES = [(name, message) for name in UNIONS for message in MESSAGES if type(message) in typing.get_args(UNIONS[name])]


def label(value: Any) -> str:
    return value if isinstance(value, str) else type(value).__name__


def sent(*messages: Any) -> bytes:
    return msgspec.msgpack.encode(wire.Envelope(12.5, None, 3, list(messages)))


def test_there_is_one_of_every_message_here() -> None:
    every = {kind for union in UNIONS.values() for kind in typing.get_args(union)}
    assert {type(message) for message in MESSAGES} == every
    plain = {
        (type(message).__name__, field)
        for message in MESSAGES
        for field, default in zip(
            reversed(message.__struct_fields__), reversed(message.__struct_defaults__), strict=False
        )
        if getattr(message, field) == default and (type(message), field) != (wire.Prepared, "ok")
    }
    assert plain == set()  # a field at its default would come back even if it was not sent


@pytest.mark.parametrize(("union", "message"), PLACES, ids=label)
def test_a_message_makes_the_round_trip(union: str, message: Any) -> None:
    envelope = DECODERS[union].decode(sent(message))
    assert envelope == wire.Envelope(12.5, None, 3, [message])
    assert type(envelope.messages[0]) is type(message)


@pytest.mark.parametrize("union", UNIONS)
def test_an_envelope_keeps_the_order_of_its_messages(union: str) -> None:
    messages = [message for name, message in PLACES if name == union] * 2
    assert DECODERS[union].decode(sent(*messages)).messages == messages


@pytest.mark.parametrize("union", UNIONS)
def test_a_message_that_does_not_belong_on_a_socket_is_refused_there(union: str) -> None:
    for message in MESSAGES:
        if type(message) not in typing.get_args(UNIONS[union]):
            with pytest.raises(msgspec.ValidationError, match=r"\$\[3\]\[0\]\[0\]"):
                DECODERS[union].decode(sent(message))


@pytest.mark.parametrize("union", UNIONS)
def test_an_unknown_tag_is_refused_with_its_place(union: str) -> None:
    body = msgspec.msgpack.encode([12.5, None, 0, [["beat"], ["frobnicate", 1]]])
    with pytest.raises(msgspec.ValidationError, match=r"'frobnicate'.*\$\[3\]\[1\]\[0\]"):
        DECODERS[union].decode(body)


def test_a_field_of_the_wrong_type_is_refused_with_its_place() -> None:
    body = msgspec.msgpack.encode([12.5, None, 0, [["cancel", "one"]]])
    with pytest.raises(msgspec.ValidationError, match=r"\$\[3\]\[0\]\[1\]"):
        DECODERS["ToController"].decode(body)


@pytest.mark.parametrize(
    "body", [[], [12.5], ["now", None, 0, []], [12.5, None, 0, {}], [12.5, None, 0, [[]]], [12.5, None, 0, ["beat"]], 7]
)
def test_what_is_no_envelope_is_refused(body: object) -> None:
    with pytest.raises(msgspec.ValidationError):
        DECODERS["ToController"].decode(msgspec.msgpack.encode(body))


@pytest.mark.parametrize(("union", "message"), PLACES, ids=label)
def test_a_message_of_an_older_release_without_the_optional_fields_is_understood(union: str, message: Any) -> None:
    fields, defaults = message.__struct_fields__, message.__struct_defaults__
    needed = fields[: len(fields) - len(defaults)]
    raw = msgspec.msgpack.decode(sent(message))
    raw[3][0] = raw[3][0][: 1 + len(needed)]
    (decoded,) = DECODERS[union].decode(msgspec.msgpack.encode(raw)).messages
    assert decoded == type(message)(**{name: getattr(message, name) for name in needed})


@pytest.mark.parametrize(("union", "message"), PLACES, ids=label)
def test_a_message_of_a_newer_release_with_a_further_field_is_understood(union: str, message: Any) -> None:
    raw = msgspec.msgpack.decode(sent(message))
    raw[3][0].append({"new": True})
    raw.append("further")
    assert DECODERS[union].decode(msgspec.msgpack.encode(raw)).messages == [message]


@given(body=st.binary(max_size=200))
def test_no_bytes_whatever_do_more_than_be_refused(body: bytes) -> None:
    for decoder in DECODERS.values():
        with pytest.raises((msgspec.MsgspecError, UnicodeDecodeError)):
            decoder.decode(body)


@pytest.mark.parametrize("message", MESSAGES, ids=label)
def test_a_message_cannot_be_changed(message: Any) -> None:
    for field in message.__struct_fields__:
        with pytest.raises(AttributeError):
            setattr(message, field, None)


@pytest.mark.parametrize(("ref", "name", "version"), [("resnet18:1", "resnet18", "1"), ("a.b-c_d:12", "a.b-c_d", "12")])
def test_a_ref_is_a_name_and_a_version(ref: str, name: str, version: str) -> None:
    assert wire.ref_of(name, version) == ref
    assert wire.split_ref(ref) == (name, version)


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    "head",
    [
        (NAN, None, 0), (INFINITY, None, 0), (-INFINITY, None, 0), (-1.0, None, 0), (1e300, None, 0),
        (1.0, NAN, 0), (1.0, INFINITY, 0), (1.0, -1e300, 0), (1.0, None, -1), (1.0, None, 1 << 63),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("name", UNIONS)
def test_an_envelope_with_an_instant_or_an_epoch_that_cannot_be_is_refused(name: str, head: tuple[Any, ...]) -> None:
    with pytest.raises(msgspec.ValidationError):
        DECODERS[name].decode(msgspec.msgpack.encode([*head, []]))
