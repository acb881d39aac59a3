"""broker/core/children.py: how old the state of a container's code is, and when only a line of it is new."""

import msgspec
import pytest

from broker.core.children import ChildStates
from mesh import wire

STATE = wire.ChildState(model="f", serves=False, for_s=2.0, starts=1, line="one", why="")
MEMBER = wire.Member(id="container-1", role="container", host="here", child=STATE)
OTHER = wire.Member(id="frontend-1", role="frontend", host="here")


def changed(**fields: object) -> wire.Member:
    return msgspec.structs.replace(MEMBER, child=msgspec.structs.replace(STATE, **fields))


def test_a_state_is_as_old_in_each_table_as_it_is_then() -> None:
    states = ChildStates()
    states.took(MEMBER, 10.0)
    states.took(OTHER, 11.0)
    members = states.aged([MEMBER, OTHER], 15.0)
    assert [member.child and member.child.for_s for member in members] == [7.0, None]
    states.took(changed(for_s=9.0), 17.0)
    (member,) = states.aged([changed(for_s=9.0)], 17.5)
    assert member.child == msgspec.structs.replace(STATE, for_s=9.5)
    states.left("container-1")


@pytest.mark.parametrize(
    ("member", "only"),
    [
        (changed(line="two", for_s=3.0), True),
        (MEMBER, True),
        (changed(serves=True), False),
        (changed(starts=2), False),
        (changed(why="SIGKILL"), False),
        (msgspec.structs.replace(MEMBER, pid=9), False),
        (msgspec.structs.replace(MEMBER, child=None), False),
    ],
)
def test_a_line_alone_may_wait_and_all_else_may_not(member: wire.Member, only: bool) -> None:
    assert ChildStates().only_line(MEMBER, member) is only
