"""Makes actions: numbers them, tells the device that they are sent, and words the orders for its worker. Pure."""

from dataclasses import dataclass

from controller.core.devices.action import Action
from controller.core.devices.base import RemoteDevice
from controller.core.orders import ToWorker
from controller.core.queues import Request
from controller.core.state import ShardState
from mesh import wire
from mesh.codes import ActionKind
from mesh.sizes import Extents

LOAD, UNLOAD, INFER = ActionKind.LOAD, ActionKind.UNLOAD, ActionKind.INFER


@dataclass(slots=True)
class Actions:
    """Numbers every action of this controller."""

    state: ShardState
    count: int = 0

    def infer(
        self,
        device: RemoteDevice,
        ref: str,
        batch: int,
        requests: list[Request],
        *,
        start_s: float,
        expected_s: float,
        latest_s: float | None,
        now: float,
        extents: Extents = (),
    ) -> ToWorker:
        """An INFER of `batch` rows goes to the device, where the version is resident or loading.

        `extents`: what EXEC computes, in the version's open dimensions.

        Without requests it is a measuring run; without `latest_s` it may start until it is overdue.
        """
        action = self._make(INFER, ref, expected_s, now, requests)
        action.batch, action.extents = batch, extents
        device.infer_sent(action, start_s, latest_s, now)
        self.state.shifted[device.worker] = device
        message = wire.Infer(
            action=action.id,
            ref=ref,
            earliest_s=action.earliest_s + device.offset_s,
            latest_s=action.latest_s + device.offset_s,
            expected_s=expected_s,
            batch=batch,
            parts=tuple([_part(request) for request in requests]),
            overdue_s=action.hangs_s + device.offset_s if action.hangs_s else 0.0,
            cold_s=action.cold_s,
            extents=extents,
        )
        return ToWorker(device.worker, message)

    def revoke(self, device: RemoteDevice) -> list[ToWorker]:
        """The device is told of each INFER there that nobody waits for any more, once. It ends as any action does."""
        orders = []
        for action in device.actions.values():
            if action.needless and not action.revoked:
                action.revoked = True
                orders.append(ToWorker(device.worker, wire.Revoke(action=action.id)))
        return orders

    def load(self, device: RemoteDevice, ref: str, *, expected_s: float, now: float) -> ToWorker:
        """A LOAD goes to the device, which has room for it."""
        action = self._make(LOAD, ref, expected_s, now, [])
        device.load_sent(action, now)
        message = wire.Load(
            action=action.id,
            ref=ref,
            earliest_s=action.earliest_s + device.offset_s,
            latest_s=action.latest_s + device.offset_s,
            expected_s=expected_s,
        )
        return ToWorker(device.worker, message)

    def unload(self, device: RemoteDevice, ref: str, *, now: float) -> ToWorker:
        """An UNLOAD goes to the device, which hosts the model no more."""
        model = self.state.models.get(ref)
        if model is not None:
            self.state.drop_host(model, device)
        action = self._make(UNLOAD, ref, 0.0, now, [])
        device.unload_sent(action)
        return ToWorker(device.worker, wire.Unload(action=action.id, ref=ref))

    def unload_unknown(self, device: RemoteDevice) -> list[ToWorker]:
        """The device is told to unload what it may have loaded without our knowledge: its pages are counted as free."""
        return [self.unload_lost(device, ref) for ref in device.pages if ref not in device.residency.models]

    def unload_lost(self, device: RemoteDevice, ref: str) -> ToWorker:
        """The device is told to unload the version, if it has it; nobody waits for the result."""
        return ToWorker(device.worker, wire.Unload(action=0, ref=ref))

    def _make(self, kind: ActionKind, ref: str, expected_s: float, now: float, requests: list[Request]) -> Action:
        self.count += 1
        return Action(self.count, kind, ref, now, expected_s, requests)


def _part(request: Request) -> wire.Part:
    """The request as a part of an INFER, with its inputs or where its frontend keeps them."""
    return wire.Part(
        frontend=request.frontend,
        request=request.number,
        attempt=request.attempt,
        rows=request.rows,
        predicted_s=request.predicted_s,
        cold=request.cold,
        inline=request.inline,
        extents=request.extents,
        kept=request.kept,
    )
