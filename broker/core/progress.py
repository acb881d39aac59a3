"""What a deployment that has not ended yet waits for. Pure."""

from collections.abc import Iterable

from mesh import wire
from mesh.codes import WaitReason


def why_waits(ref: str, members: Iterable[wire.Member], *, container: bool) -> tuple[WaitReason, str]:
    """Why the version is not current yet, as far as the table shows. `container`: no worker has to prepare it."""
    there = list(members)
    if not any(member.role == "controller" for member in there):
        text = f"{ref} waits: no controller is there that could have it prepared; is the mesh up? (gearmesh status)"
        return WaitReason.NO_CONTROLLER, text
    workers = sum(member.role == "gpu_worker" and member.offer is None for member in there)
    if not workers and not container:
        text = f"{ref} waits: no worker is there that could prepare it; gearmesh status shows who is there"
        return WaitReason.NO_WORKER, text
    how = "its container is being taken over" if container else f"it is being prepared ({workers} workers are there)"
    return WaitReason.PREPARING, f"{ref} waits: {how}"
