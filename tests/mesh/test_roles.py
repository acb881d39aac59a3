"""mesh/roles.py: which port a key opens, and for which member its holder speaks."""

import pytest

from mesh.roles import ALL_ROLES, Holder, PortKind, Role, may_call, may_speak, roles_of, who_may_call

OPENS = {
    Role.CLIENT: {PortKind.CLIENTS},
    Role.FRONTEND: {PortKind.CLIENTS, PortKind.CONTROL, PortKind.BROKER},
    Role.CONTROLLER: {PortKind.BROKER},
    Role.WORKER: {PortKind.CONTROL, PortKind.RESULTS, PortKind.BROKER},
    Role.BROKER: set(),
    Role.OPERATOR: {PortKind.CLIENTS, PortKind.CONTROL, PortKind.BROKER},
}
SPEAKS = [
    (Role.FRONTEND, "frontend-1"),
    (Role.CONTROLLER, "controller-1"),
    (Role.WORKER, "gpu_worker-1"),
    (Role.WORKER, "container-1"),
    (Role.OPERATOR, "operator-1"),
]


def holder(*roles: Role, key: str = "k") -> Holder:
    return Holder(key, "somebody", frozenset(roles))


@pytest.mark.parametrize("role", Role)
def test_a_role_opens_its_ports_and_no_others(role: Role) -> None:
    assert {kind for kind in PortKind if may_call(kind, frozenset((role,)))} == OPENS[role]


@pytest.mark.parametrize("role", Role)
def test_a_role_speaks_for_its_own_members_and_for_no_others(role: Role) -> None:
    spoken = [(needed, member) for needed, member in SPEAKS if may_speak(holder(role), member)]
    assert spoken == [(needed, member) for needed, member in SPEAKS if needed is role]


@pytest.mark.parametrize(("known", "may"), [("", True), ("k", True), ("another", False)])
def test_a_registered_member_is_spoken_for_with_its_key_alone(known: str, may: bool) -> None:
    assert may_speak(holder(Role.WORKER), "gpu_worker-1", known) is may
    assert may_speak(holder(*ALL_ROLES), "gpu_worker-1", known) is may


@pytest.mark.parametrize("member", ["", "stranger", "operators-1", "broker-1", "gpu_worker1"])
def test_an_id_of_no_known_form_takes_every_role_between_services(member: str) -> None:
    assert may_speak(holder(*ALL_ROLES), member)
    for role in ALL_ROLES - {Role.CLIENT}:
        assert not may_speak(holder(*(ALL_ROLES - {role})), member)


def test_what_a_connection_carries_says_who_called() -> None:
    found = Holder("x" * 40, "alice", frozenset((Role.CLIENT, Role.OPERATOR)))
    assert Holder.read(found.written()) == found
    assert len(Holder("x" * 40, "n" * 64, ALL_ROLES).written()) < 256  # ZeroMQ allows 255


def test_what_is_no_role_is_named() -> None:
    assert roles_of(" client, worker,") == {Role.CLIENT, Role.WORKER}
    with pytest.raises(ValueError, match=r"'boss' is no role; roles are: client,"):
        roles_of("client,boss")


def test_whoever_is_refused_is_told_what_the_port_takes() -> None:
    assert who_may_call(PortKind.RESULTS) == "its results port takes keys with the role worker"
