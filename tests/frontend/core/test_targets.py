"""frontend/core/targets.py: the version that a request is bound to, or why it is bound to none."""

from typing import Any

import pytest

from frontend.core.protocol import InferRequest, RequestRefused
from frontend.core.targets import Targets
from mesh import wire

TENSOR = wire.TensorSpec(name="x", dtype="uint8", shape=(-1, 2))


def spec(build: str = "") -> wire.ModelSpec:
    return wire.ModelSpec(inputs=(TENSOR,), outputs=(TENSOR,), batch_max=4, slo_ms=50.0, build=build)


def entry(name: str, current: str | None = "1", **fields: Any) -> wire.ModelEntry:
    known: dict[str, Any] = {"target": None, "versions": ("1", "2"), "owner": "c", "spec": spec(), **fields}
    return wire.ModelEntry(name=name, current=current, **known)


def targets(*models: wire.ModelEntry) -> Targets:
    made = Targets(rows_max=100)
    made.table_changed(models)
    return made


def infer(**fields: Any) -> InferRequest:
    return InferRequest(id=7, inputs=[], **fields)


@pytest.mark.parametrize("version", [None, "2"])
def test_a_request_is_bound_to_the_current_version(version: str | None) -> None:
    target = targets(entry("m", "2")).of(infer(model="m", version=version))
    assert (target.ref, target.version, target.spec) == ("m:2", "2", spec())


@pytest.mark.parametrize(
    ("request_", "code", "status", "says"),
    [
        (infer(model="x"), "unknown_model", "invalid", "broken, coming, m"),
        (infer(model="m", version="1"), "unknown_version", "invalid", "'2'"),
        (infer(model="m", context="ann"), "bad_target", "invalid", "context.*app"),
        (infer(model="coming"), "not_ready", "rejected", "coming"),
        (infer(model="broken"), "not_ready", "rejected", "no weights"),
    ],
)
def test_whoever_is_bound_to_nothing_is_told_why(request_: InferRequest, code: str, status: str, says: str) -> None:
    made = targets(entry("m", "2"), entry("coming", None, spec=None), entry("broken", None, fault="no weights"))
    with pytest.raises(RequestRefused, match=says) as caught:
        made.of(request_)
    assert (caught.value.code, caught.value.status, caught.value.id) == (code, status, 7)


@pytest.mark.parametrize(
    ("model", "again"),
    [
        (entry("m", None, spec=None), True),
        (entry("m", None, spec=None, target="1"), True),
        (entry("m", None, fault="no weights"), False),  # nobody is at work to mend it
        (entry("m", None, fault="no weights", target="2"), True),
    ],
)
def test_only_what_is_on_its_way_is_asked_for_again(model: wire.ModelEntry, again: bool) -> None:
    with pytest.raises(RequestRefused) as caught:
        targets(model).of(infer(model="m"))
    assert (caught.value.retry_after_ms is not None) == again


def test_a_model_of_no_model_is_named_as_such() -> None:
    with pytest.raises(RequestRefused) as caught:
        targets().of(infer(model="m"))
    assert caught.value.code == "unknown_model"


def test_an_answer_is_current_until_the_table_names_another_version_or_build() -> None:
    made = targets(entry("m"))
    assert made.current("m:1", spec())
    assert list(made.editions()) == ["m:1"]
    made.table_changed([entry("m", spec=spec("b"))])
    assert not made.current("m:1", spec())
    assert made.current("m:1", spec("b"))
    assert list(made.editions()) == ["m:1#b"]
    made.table_changed([entry("m", "2")])
    assert not made.current("m:1", spec())
    made.table_changed([])
    assert not made.current("m:2", spec())
