"""Workers and versions come and go, and nothing of them is left under any policy."""

import gc

import pytest

from controller.core.devices.paged import PagedDevice
from controller.core.policies.prefetch import FreePages
from controller.core.policies.registry import POLICIES
from mesh.codes import ActionKind
from tests.controller.core.controller_builders import Shard, hello, prepared

LIVES = 12


def ends(shard: Shard, now: float) -> None:
    """Whatever is under way ends well."""
    for worker, device in list(shard.state.devices.items()):
        for action in list(device.actions.values()):
            if action.kind is ActionKind.LOAD:
                shard.loaded(action.id, now=now, worker=worker)
            elif action.kind is ActionKind.INFER:
                shard.ran(action.id, begin_s=now - 0.01, duration_s=0.01, worker=worker)
            else:
                shard.result(action.id, action.kind, now=now, worker=worker)


def count(kind: type) -> int:
    """Objects of this class that something still refers to."""
    gc.collect()
    return sum(issubclass(type(found), kind) for found in gc.get_objects())


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_nothing_is_kept_of_workers_that_are_gone(policy: str) -> None:
    devices, free = count(PagedDevice), count(FreePages)
    shard, now = Shard(kind=policy), 100.0
    for life in range(LIVES):
        refs = [f"m{life}:1", f"m{life + 1}:1"]
        shard.want(refs, now=now)
        shard.join(hello(f"w{life}", *map(prepared, refs), resident=refs[:1]), now=now)
        if life:
            shard.lose(f"w{life - 1}", now=now)
        for number, ref in enumerate(refs):
            shard.submit(10 * life + number, ref, now=now, budget_s=1.0)
        for _ in range(8):
            shard.wake(now)
            now += 0.05
            ends(shard, now)
    assert list(shard.state.devices) == [f"w{LIVES - 1}"]
    assert count(PagedDevice) - devices == 1
    assert count(FreePages) - free <= 1
