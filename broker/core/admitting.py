"""Who may register as what: what a member says of itself has to hold together, or others would trip over it. Pure."""

from mesh import wire
from mesh.addresses import address_fault

LISTENS = {"controller": "control"}  # {role: what others learn from the table alone to reach it by}
ROLES = ("controller", "gpu_worker", "frontend", "container")


def why_not(peer: str, member: wire.Member, known: wire.Member | None) -> str:
    """Why the member cannot be in the table, in a sentence; empty if it can.

    `peer`: whom the link belongs to that it registers on; `known`: the member of this id that there is.
    """
    role, endpoints = member.role, member.endpoints
    if member.id != peer:
        return f"{peer[:64]!r} cannot register another one: {member.id[:64]!r}"
    if role not in ROLES:
        return f"there is no role {role[:64]!r}, but {', '.join(ROLES)}"
    if known is not None and known.role != role:
        return f"{member.id} is a {known.role}, and cannot become a {role}"
    needed = LISTENS.get(role)
    if needed is not None and needed not in endpoints:
        return f"a {role} says where it listens: its endpoints have no {needed!r}"
    for kind, addresses in endpoints.items():
        fault = address_fault(addresses)
        if fault:
            return f"nobody can reach it at its {kind[:64]!r} endpoint: {fault}"
    if member.offer is not None and role != "gpu_worker":
        return f"a {role} offers no version of a model; a container's worker does"
    if member.offer is not None and (fault := member.offer.spec.fault()):
        return f"what it offers cannot be: {fault}"
    if member.child is not None and role not in ("gpu_worker", "container"):
        return f"a {role} has no child process"
    return ""
