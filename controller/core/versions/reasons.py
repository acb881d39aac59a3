"""Why a version is not served: what a request for it is told. Pure."""

from dataclasses import dataclass

from controller.core.state import ShardState
from controller.core.versions.contents import VersionContents
from controller.core.versions.wanted import WantedVersions
from mesh.codes import ErrorCode

RETRY_S = 1.0  # what a client is told where nothing better is known


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a request is rejected."""

    code: ErrorCode
    message: str
    retry_s: float | None = None  # after how long to ask again; None: nothing is known of that


@dataclass(slots=True)
class Reasons:
    """Knows why versions are not served now, and which ones never can be."""

    state: ShardState
    versions: WantedVersions
    contents: VersionContents

    def now(self, ref: str) -> Reason:
        """Why no device can serve the version now."""
        if ref not in self.versions:
            return Reason(ErrorCode.NOT_DEPLOYED, f"{ref} is not deployed (any more)")
        if ref in self.versions.contained:
            return Reason(ErrorCode.NO_REPLICA, self._no_replica(ref), RETRY_S)
        if not self.state.devices:
            return Reason(ErrorCode.NO_WORKER, "no worker is there", RETRY_S)
        return self.never(ref) or Reason(ErrorCode.NOT_READY, f"{ref} is still being prepared", RETRY_S)

    def never(self, ref: str) -> Reason | None:
        """Why no device can prepare the version; None while one serves it, or may yet prepare it.

        It is always None for a version in containers: another replica may be started at any time.
        """
        model = self.state.models.get(ref)
        if ref in self.versions.contained or (model is not None and model.ready):
            return None
        if not self.contents.failed_everywhere(ref):
            return None
        why = next(iter(self.contents.faults(ref)), "no device said why")
        return Reason(ErrorCode.NOT_READY, f"{ref} cannot be served: {why}")

    def too_late(self, ref: str, *, ready: bool) -> Reason:
        """Why a request that has waited is not served in time. `ready`: some device can serve its version."""
        if not ready and ref in self.versions.contained:
            return Reason(ErrorCode.NO_REPLICA, self._no_replica(ref))
        return Reason(ErrorCode.DEADLINE, "it can no longer be served in time")

    def _no_replica(self, ref: str) -> str:
        faults = self.contents.faults(ref)
        if faults:
            return f"no replica of {ref} can serve now: {faults[0]}"
        return f"no container of {ref} is running (any more); start one with `gearmesh container` or `gearmesh scale`"
