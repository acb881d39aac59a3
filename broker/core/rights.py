"""What the holder of a key may ask of the broker, by the roles of that key. Pure."""

from typing import assert_never

from mesh import wire
from mesh.codes import ReplyCode
from mesh.roles import ALL_ROLES, SPEAKERS, Role

OPERATOR = frozenset((Role.OPERATOR,))
FRONTEND = frozenset((Role.FRONTEND, Role.OPERATOR))
CONTROLLER = frozenset((Role.CONTROLLER,))
WORKER = frozenset((Role.WORKER, Role.OPERATOR))


def needed(message: wire.ToBroker) -> frozenset[Role]:
    """One of these roles is needed to say this; to register, the one that the member has."""
    match message:
        case wire.Register():
            role = SPEAKERS.get(message.member.role)
            return frozenset((role,)) if role is not None else ALL_ROLES  # why there is no such role is told to all
        case wire.Heartbeat() | wire.Goodbye():
            return ALL_ROLES
        case wire.Deploy() | wire.Undeploy() | wire.Rollback() | wire.GetTable() | wire.GetCatalogue():
            return OPERATOR
        case wire.PutApp() | wire.DropApp() | wire.TableTaken():
            return FRONTEND
        case wire.ClaimVersion():
            return WORKER
        case wire.PrepareReport():
            return CONTROLLER
        case _:
            assert_never(message)


def refusal(message: wire.ToBroker, roles: frozenset[Role]) -> wire.CallReply | None:
    """The answer to a call whose caller's key lacks the role; None: there is none, as nobody waits for it."""
    call = getattr(message, "call", None)
    if call is None:
        return None
    missing, own = " or ".join(sorted(needed(message))), ", ".join(sorted(roles))
    text = f"only a key with the role {missing} may ask the broker for this; this one has: {own}"
    return wire.CallReply(call=call, ok=False, message=text, code=ReplyCode.NO_ROLE)
