"""broker/core/applications.py: applications are made, changed and deleted as clients ask."""

from typing import Any

import pytest

from mesh import wire
from mesh.codes import ReplyCode
from mesh.names import NAME, listed
from tests.broker.core.catalogues import ANN, state, told
from tests.messages import names


def app(**fields: Any) -> dict[str, Any]:
    return {"name": "digits", "models": ["m"], "policy": "exp3", **fields}


def test_an_application_is_made_changed_and_deleted(serving: Any) -> None:
    reply = serving.put_app(5, app(), create=True)
    assert reply == wire.CallReply(call=5, ok=True, message=reply.message, revision=1)
    reply = serving.put_app(6, app(slo_ms=20), create=False)
    assert reply == wire.CallReply(call=6, ok=True, message=reply.message, revision=2)
    assert serving.apps.entries() == (wire.AppEntry(name="digits", definition=app(slo_ms=20), revision=2, created=1),)
    assert serving.apps.changed == {"digits"}
    reply = serving.drop_app(7, "digits")
    assert reply == wire.CallReply(call=7, ok=True, message=reply.message)
    assert serving.apps.entries() == ()


def test_applications_are_listed_in_order_of_name(serving: Any) -> None:
    for name in ("b", "a", "c"):
        serving.put_app(1, app(name=name), create=True)
    assert [entry.name for entry in serving.apps.entries()] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("definition", "create", "field", "code", "named"),
    [
        (app(name="9 lives"), True, "app.name", "bad_app", (NAME.pattern, "'9 lives'")),
        (app(name=7), True, "app.name", "bad_app", (NAME.pattern, 7)),
        ({"models": ["m"]}, True, "app.name", "bad_app", (NAME.pattern, None)),
        (app(name="there"), True, "app.name", "app_exists", ("'there'", "update_app")),
        (app(name="x"), False, "app.name", "unknown_app", ("'x'", "there")),
        (app(models=["m", "nowhere", "nobody"]), True, "app.models", "bad_app", ("nowhere, nobody", ": m")),
        (app(name="there", models=["nowhere"]), False, "app.models", "bad_app", ("nowhere", ": m")),
    ],
)
def test_a_wrong_application_is_refused_with_the_field(
    serving: Any, definition: dict[str, Any], create: bool, field: str, code: str, named: tuple[object, ...]
) -> None:
    serving.put_app(1, app(name="there"), create=True)
    serving.apps.changed.clear()
    reply = serving.put_app(5, definition, create=create)
    assert reply == wire.CallReply(call=5, ok=False, message=reply.message, field=field, code=code)
    assert names(reply.message, *named)
    assert serving.apps.changed == set()
    assert list(serving.apps.records) == ["there"]


@pytest.mark.parametrize("models", [5, None, "m", {"m": 1}, [["m"]], [{}], []])
def test_an_application_whose_models_are_no_list_of_names_is_refused(serving: Any, models: object) -> None:
    reply = serving.put_app(5, app(models=models), create=True)
    assert (reply.ok, reply.field, reply.code) == (False, "app.models", "bad_app")


def test_an_application_that_is_not_there_cannot_be_deleted(serving: Any) -> None:
    reply = serving.drop_app(5, "x")
    assert reply == wire.CallReply(call=5, ok=False, message=reply.message, field="app", code="unknown_app")
    assert names(reply.message, "'x'", "none")


def test_a_model_that_an_application_uses_cannot_be_undeployed(serving: Any) -> None:
    serving.put_app(1, app(name="b"), create=True)
    serving.put_app(2, app(name="a"), create=True)
    assert serving.undeploy(ANN, "m") == told(ANN, ReplyCode.IN_USE, "'m'", "a, b", field="name")
    assert state(serving) == ("1", None, [])
    serving.drop_app(3, "a")
    serving.drop_app(4, "b")
    assert serving.undeploy(ANN, "m") == told(ANN, "", "m")


def test_an_application_made_anew_under_an_old_name_has_another_revision(serving: Any) -> None:
    first = serving.put_app(1, app(), create=True).revision
    serving.drop_app(2, "digits")
    assert serving.put_app(3, app(slo_ms=20), create=True).revision != first


def test_of_very_many_names_a_sentence_has_the_first() -> None:
    assert listed([]) == "none"
    assert listed({"b": 1, "a": 2}) == "a, b"
    names = [f"m{number:02}" for number in range(25)]
    assert listed(names[:20]) == ", ".join(names[:20])
    assert listed(reversed(names)) == ", ".join(names[:20]) + " and 5 more"


def test_an_application_is_created_once_and_another_of_its_name_again(serving: Any) -> None:
    def created() -> list[int]:
        return [entry.created for entry in serving.apps.entries()]

    serving.put_app(1, app(), create=True)
    first = created()
    serving.put_app(2, app(slo_ms=20), create=False)
    assert created() == first
    serving.drop_app(3, "digits")
    serving.put_app(4, app(), create=True)
    assert created() != first
