"""broker/core/rights.py: what a key's roles let its holder ask of the broker."""

import pytest

from broker.core.rights import needed, refusal
from mesh import wire
from mesh.codes import ReplyCode
from mesh.roles import ALL_ROLES, Role

CALLS = {
    wire.Deploy(call=7, name="m", version=None): {Role.OPERATOR},
    wire.Undeploy(call=7, name="m"): {Role.OPERATOR},
    wire.Rollback(call=7, name="m"): {Role.OPERATOR},
    wire.GetTable(call=7): {Role.OPERATOR},
    wire.GetCatalogue(call=7): {Role.OPERATOR},
    wire.DropApp(call=7, name="a"): {Role.OPERATOR, Role.FRONTEND},
    wire.ClaimVersion(call=7, name="m", content="c"): {Role.OPERATOR, Role.WORKER},
}
REPORT = wire.PrepareReport(ref="m:1", ok=True)


@pytest.mark.parametrize("call", CALLS)
def test_a_call_takes_its_role_and_whoever_lacks_it_is_told_so(call: wire.ToBroker) -> None:
    assert needed(call) == CALLS[call]
    told = refusal(call, frozenset((Role.CLIENT,)))
    assert told is not None
    assert (told.call, told.ok, told.code) == (7, False, ReplyCode.NO_ROLE)
    assert all(role in told.message for role in (*CALLS[call], Role.CLIENT))


def test_a_report_is_a_controllers_and_nobody_waits_for_its_refusal() -> None:
    assert needed(REPORT) == {Role.CONTROLLER}
    assert refusal(REPORT, frozenset()) is None


@pytest.mark.parametrize(
    ("role", "taken"),
    [
        ("gpu_worker", {Role.WORKER}), ("container", {Role.WORKER}), ("frontend", {Role.FRONTEND}),
        ("controller", {Role.CONTROLLER}), ("operator", {Role.OPERATOR}), ("king", set(ALL_ROLES)),
    ],
)  # fmt: skip
def test_a_member_registers_with_a_key_of_its_role(role: str, taken: set[Role]) -> None:
    assert needed(wire.Register(member=wire.Member(id="x", role=role, host="h"))) == taken


def test_everybody_may_be_alive_and_leave() -> None:
    assert needed(wire.Heartbeat()) == needed(wire.Goodbye()) == ALL_ROLES
