"""The state of a shard as an operator sees it. It is put together only when somebody asks. Pure."""

import heapq
from collections.abc import Callable

from controller.core.devices.base import RemoteDevice
from controller.core.scheduler import Scheduler
from controller.core.state import Model
from controller.core.telemetry.models import BOUNDS, ModelTotals
from controller.core.telemetry.totals import DeviceTotals, spread
from mesh.facts import DeviceState, JournalState, ModelState, Place, Snapshot

PLACES_MAX = 32  # models listed for one device
MODELS_MAX = 100  # models listed for the shard


def snapshot(
    scheduler: Scheduler,
    *,
    name: str,
    policy: str,
    started_s: float,
    heard_s: Callable[[str], float],
    journal: JournalState,
    now: float,
) -> Snapshot:
    """The shard at this instant. `heard_s(worker)`: when the worker's last message came."""
    state, counters, telemetry = scheduler.state, scheduler.counters, scheduler.telemetry
    isolation = scheduler.isolation
    busiest = heapq.nlargest(
        MODELS_MAX, state.models.values(), key=lambda model: (len(model.queue), model.popularity.value(now))
    )
    return Snapshot(
        controller=name,
        policy=policy,
        now_s=now,
        uptime_s=now - started_s,
        frontends=len(scheduler.reporting.frontends),
        waiting=state.waiting,
        open=scheduler.open_requests,
        submitted=counters.submitted,
        in_time=counters.in_time,
        late=counters.late,
        cancelled=telemetry.cancelled,
        cold=telemetry.cold,
        refused=dict(counters.refused),
        failed_actions=dict(counters.failed_actions),
        batches=counters.batches,
        batched_rows=counters.batched_rows,
        loads=counters.loads,
        unloads=counters.unloads,
        latency_s=spread(telemetry.latencies_s),
        exec_error=spread(telemetry.exec_errors),
        load_error=spread(telemetry.load_errors),
        latency_error=spread(telemetry.latency_errors),
        devices=tuple(
            _device(device, telemetry.devices.get(worker) or DeviceTotals(), now - heard_s(worker))
            for worker, device in state.devices.items()
        ),
        models=tuple(_model(model, telemetry.models.of(model.ref), now) for model in busiest),
        models_total=len(state.models),
        journal=journal,
        revoked=counters.revoked,
        computed_for_nobody=counters.computed_for_nobody,
        rows_for_nobody=counters.rows_for_nobody,
        timed_out=telemetry.timed_out,
        left_out=counters.left_out,
        bounds=dict(BOUNDS),
        records=telemetry.models.records(),
        tried_apart=isolation.tried_apart,
        tried_alone=isolation.tried_alone,
        quarantines=isolation.quarantines,
        failed_s=isolation.failed_s,
        amended=dict(telemetry.amendments),
        elements=telemetry.elements,
        elements_computed=telemetry.elements_computed,
    )


def _device(device: RemoteDevice, totals: DeviceTotals, heard_ago_s: float) -> DeviceState:
    residency = device.residency
    places: list[Place] = []
    for ref in reversed(residency.models):
        if len(places) == PLACES_MAX:
            break
        place = residency.models[ref]
        state = "loading" if place.loading is not None else "running" if place.bound else "resident"
        places.append(Place(ref=ref, pages=place.pages, state=state))
    return DeviceState(
        worker=device.worker,
        name=device.info.name,
        kind=device.info.kind,
        pages=residency.total,
        free_pages=residency.free,
        page_bytes=device.info.page_bytes,
        leaving=device.leaving,
        heard_ago_s=heard_ago_s,
        clock_offset_s=device.offset_s,
        exec_busy_s=totals.exec_busy_s,
        load_busy_s=totals.load_busy_s,
        exec_pending=len(device.exec),
        load_pending=len(device.load),
        batches=totals.batches,
        loads=totals.loads,
        failed=totals.failed,
        prepared=len(device.curves),
        resident=len(residency.models),
        places=tuple(places),
    )


def _model(model: Model, totals: ModelTotals, now: float) -> ModelState:
    return ModelState(
        ref=model.ref,
        devices=len(model.hosts),
        ready=len(model.ready),
        waiting=len(model.queue),
        rate=model.popularity.rate(now),
        in_time=totals.in_time,
        late=totals.late,
        refused=totals.refused,
        cold=totals.cold,
        timed_out=totals.timed_out,
    )
