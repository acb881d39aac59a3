"""What the holder of a key may do: the roles of keys, the ports that they open, the members for which they speak. Pure.

Every port of a mesh asks the same: does the key have a role that may call here, and, between services, is it the key of
the member in whose name it speaks.
"""

from enum import StrEnum
from typing import NamedTuple


class Role(StrEnum):
    """What the holder of a key is to the mesh. A key may have several roles."""

    CLIENT = "client"
    FRONTEND = "frontend"  # also an HTTP gateway, which says for whom it asks
    CONTROLLER = "controller"
    WORKER = "worker"  # also a container's
    BROKER = "broker"
    OPERATOR = "operator"


class PortKind(StrEnum):
    """The ports of a mesh, by what they are for."""

    CLIENTS = "clients"
    CONTROL = "control"
    RESULTS = "results"
    BROKER = "broker"


ALL_ROLES = frozenset(Role)
CALLERS: dict[PortKind, frozenset[Role]] = {  # {port: roles whose holders may call it}
    PortKind.CLIENTS: frozenset((Role.CLIENT, Role.FRONTEND, Role.OPERATOR)),
    PortKind.CONTROL: frozenset((Role.FRONTEND, Role.WORKER, Role.OPERATOR)),
    PortKind.RESULTS: frozenset((Role.WORKER,)),
    PortKind.BROKER: frozenset((Role.FRONTEND, Role.CONTROLLER, Role.WORKER, Role.OPERATOR)),
}
SPEAKERS: dict[str, Role] = {  # {what a member id begins with, up to its first dash: role that speaks for it}
    "frontend": Role.FRONTEND,
    "controller": Role.CONTROLLER,
    "gpu_worker": Role.WORKER,
    "container": Role.WORKER,
    "operator": Role.OPERATOR,
}


class Holder(NamedTuple):
    """Who has called: the holder of a key, as the port's handshake has found it."""

    key: str  # the public key, Z85
    name: str  # of its file, for people
    roles: frozenset[Role]

    def written(self) -> str:
        """As libzmq carries it with every message of the connection (RFC 27: the user id)."""
        return f"{self.key} {self.name} {','.join(sorted(self.roles))}"

    @classmethod
    def read(cls, written: str) -> "Holder":
        """What `written` has returned."""
        key, name, roles = written.split(" ")
        return cls(key, name, roles_of(roles))


def roles_of(written: str) -> frozenset[Role]:
    """The roles of a list such as "client,operator". Raises: ValueError, which names what is no role."""
    names = [name.strip() for name in written.split(",") if name.strip()]
    unknown = [name for name in names if name not in ALL_ROLES]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no role; roles are: {', '.join(Role)}")
    return frozenset(map(Role, names))


def may_call(kind: PortKind, roles: frozenset[Role]) -> bool:
    """Whether a holder of these roles may call a port of this kind."""
    return not CALLERS[kind].isdisjoint(roles)


def may_speak(holder: Holder, member: str, known: str = "") -> bool:
    """Whether the holder may speak in the name of this member, or operator.

    `known`: the key with which the member has registered; empty: it has not, so its role alone decides. An id of no
    known form may be used by those who have every role between services.
    """
    if known and known != holder.key:
        return False
    role = role_of(member)
    return role in holder.roles if role is not None else ALL_ROLES - {Role.CLIENT} <= holder.roles


def role_of(member: str) -> Role | None:
    """The role that speaks for a member, or operator, with this id; None: the id has no known form."""
    return SPEAKERS.get(member.partition("-")[0])


def who_may_call(kind: PortKind) -> str:
    """The sentence that tells whoever was refused at such a port what is missing."""
    return f"its {kind} port takes keys with the role {' or '.join(sorted(CALLERS[kind]))}"
