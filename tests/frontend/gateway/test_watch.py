"""frontend/gateway/watch.py: what operators ask for goes on, and is bounded, whoever goes on waiting for it."""

import asyncio
from pathlib import Path

import pytest

from frontend.gateway.errors import HttpRefusal
from frontend.gateway.watch import OPERATIONS_MAX, MeshWatch
from gearmesh.operations.ports import free_ports
from mesh.codes import HttpCode
from mesh.net.keys import Keys
from mesh.process.settings import Settings
from tests.loops import on_loop


@on_loop
async def test_operations_of_callers_that_leave_are_counted_until_they_have_ended(tmp_path: Path) -> None:
    """Else whoever asks and leaves, again and again, makes a queue without end."""
    Keys.of_data_dir(tmp_path, make=True)  # of a mesh that was there
    watch = MeshWatch(Settings(broker_port=free_ports(1)[0], data_dir=tmp_path))  # nobody answers there for a while
    asked = [asyncio.ensure_future(watch.operate("m", None, deploy=True)) for _ in range(OPERATIONS_MAX)]
    await asyncio.sleep(0)
    for task in asked:
        task.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    with pytest.raises(HttpRefusal) as refused:
        await watch.operate("m", None, deploy=True)
    assert refused.value.code == HttpCode.GATEWAY_FULL
    await watch.close()
