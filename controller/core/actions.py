"""Makes actions: notes them in the device's forecast and residency, and words the order for its worker. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from controller.core.batching import BlackBoxCurve
from controller.core.orders import ToWorker
from controller.core.queues import Request
from controller.core.state import Action, Device
from mesh import wire

OVERDUE_S_MIN = 2.0  # an action this long past its expected end is lost, though its worker is alive
OVERDUE_FACTOR = 5.0  # or this many times its expected duration
EARLY_S = 0.001  # windows open this much before now: clock offsets are known to less
LOAD_LATE_S = 1.0  # a LOAD may start this late: it stays useful
HANGS_AFTER_S = 1.0  # a container's batch that runs so long past its last deadline, and 5 x its expected time, hangs
COLD_S = 30.0  # so much more for the first batch of a process, which may import, load and compile
LAST_WORD_S = 1.0  # and its worker has so long to say so


@dataclass(slots=True)
class Actions:
    """Numbers every action of this controller."""

    count: int = 0

    def infer(
        self,
        device: Device,
        ref: str,
        batch: int,
        requests: list[Request],
        *,
        start_s: float,
        expected_s: float,
        latest_s: float | None,
        now: float,
    ) -> ToWorker:
        """An INFER of `batch` rows goes to the device. No requests: a measuring run. No `latest_s`: until overdue."""
        action = self._make(device, "infer", ref, expected_s, now)
        action.batch, action.requests = batch, requests
        action.expected_end_s = device.exec.add(action.id, expected_s, start_s, now)
        _set_overdue(device, action)
        action.place = device.residency.used(ref, now)
        action.latest_s = action.overdue_s if latest_s is None else latest_s
        hangs_s = 0.0
        if device.info.container and requests:
            last_s = max(action.expected_end_s, *(request.deadline_s for request in requests))
            curve = device.curves.get(ref)
            cold = isinstance(curve, BlackBoxCurve) and curve.cold
            hangs_s = last_s + HANGS_AFTER_S + OVERDUE_FACTOR * expected_s
            action.overdue_s = hangs_s + (COLD_S if cold else 0.0) + LAST_WORD_S
            device.overdue_s = min(device.overdue_s, action.overdue_s)
        parts, frames = _parts(requests)
        message = wire.Infer(
            action=action.id,
            ref=ref,
            earliest_s=action.earliest_s + device.offset_s,
            latest_s=action.latest_s + device.offset_s,
            expected_s=expected_s,
            batch=batch,
            parts=parts,
            overdue_s=hangs_s + device.offset_s if hangs_s else 0.0,
            cold_s=COLD_S if hangs_s else 0.0,  # whether it is the first there, the worker knows better: results travel
        )
        return ToWorker(device.worker, message, frames)

    def load(self, device: Device, ref: str, *, expected_s: float, now: float) -> ToWorker:
        """A LOAD goes to the device, which has room for it."""
        action = self._make(device, "load", ref, expected_s, now)
        action.expected_end_s = device.load.add(action.id, expected_s, now + device.dispatch.value_s, now)
        _set_overdue(device, action)
        device.residency.loading(ref, device.pages[ref], action.id, action.expected_end_s, now)
        action.latest_s = action.expected_end_s + LOAD_LATE_S
        message = wire.Load(
            action=action.id,
            ref=ref,
            earliest_s=action.earliest_s + device.offset_s,
            latest_s=action.latest_s + device.offset_s,
            expected_s=expected_s,
        )
        return ToWorker(device.worker, message)

    def unload(self, device: Device, ref: str, *, now: float) -> ToWorker:
        """An UNLOAD goes to the device; its pages count as free from now on: what follows is ordered behind it."""
        action = self._make(device, "unload", ref, 0.0, now)
        _set_overdue(device, action)
        device.residency.gone(ref)
        device.room_for_more = True
        return ToWorker(device.worker, wire.Unload(action=action.id, ref=ref))

    def _make(self, device: Device, kind: str, ref: str, expected_s: float, now: float) -> Action:
        self.count += 1
        action = Action(self.count, kind, ref, now, expected_s, now, 0.0, earliest_s=now - EARLY_S, latest_s=now)
        device.actions[action.id] = action
        return action


def _set_overdue(device: Device, action: Action) -> None:
    action.overdue_s = action.expected_end_s + max(OVERDUE_S_MIN, OVERDUE_FACTOR * action.expected_s)
    device.overdue_s = min(device.overdue_s, action.overdue_s)


def _parts(requests: Sequence[Request]) -> tuple[tuple[wire.Part, ...], list[Any]]:
    """The requests as parts of an INFER, and the tensors that go beside it."""
    frames: list[Any] = []
    parts = []
    for request in requests:
        large = request.large
        if large:
            frames.extend(request.tensors)
        parts.append(
            wire.Part(
                frontend=request.frontend,
                request=request.number,
                attempt=request.attempt,
                rows=request.rows,
                predicted_s=request.predicted_s,
                cold=request.cold,
                inline=() if large else tuple(request.tensors),
                frames=len(request.tensors) if large else 0,
            )
        )
    return tuple(parts), frames
