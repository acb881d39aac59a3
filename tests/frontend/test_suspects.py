"""frontend/suspects.py: operators learn who a client is that a controller suspects, as far as a frontend knows."""

from pathlib import Path
from typing import Any

import pytest
import structlog
import zmq

from frontend.suspects import SUSPECTS_MAX
from mesh import wire
from tests.frontend.service_mesh import Mesh, mesh, request
from tests.loops import on_loop


def named(number: int, pause_s: float = 0.0, ref: str = "m:1") -> wire.ClientSuspected:
    return wire.ClientSuspected(client=number, ref=ref, code="container_died", pause_s=pause_s)


async def told(at: Mesh, count: int) -> list[dict[str, Any]]:
    status = await at.status(lambda status: len(status["suspects"]) >= count)
    suspects: list[dict[str, Any]] = status["suspects"]
    return suspects


@pytest.mark.parametrize(("source", "name"), [(None, b""), ("192.0.2.7 [red]", b""), (None, b"host-A")])
def test_a_suspect_has_the_address_the_source_and_the_name_that_it_asked_with(
    tmp_path: Path, source: str | None, name: bytes
) -> None:
    @on_loop
    async def check() -> None:
        async with mesh(tmp_path) as at:
            sock = at.made.bare(zmq.DEALER, name)
            sock.connect(at.address)
            sock.send(request(1, **({"source": source} if source else {})))
            (submit,) = await at.controller.wait(wire.Submit, 1)
            assert submit.client
            with structlog.testing.capture_logs() as lines:
                at.controller.send(named(submit.client), named(submit.client, 2.0))
                (suspect,) = await told(at, 1)
            assert suspect["peer"].startswith("127.0.0.1:")
            assert (suspect["client"], suspect["ref"], suspect["pause_s"]) == (submit.client, "m:1", 2.0)
            assert suspect.get("source") == source
            assert suspect.get("identity") == (name.decode() or None)
            events = [(line["event"], line["peer"]) for line in lines if line.get("client") == submit.client]
            assert events == [("suspect_client", suspect["peer"]), ("quarantined_client", suspect["peer"])]

    check()


@on_loop
async def test_a_suspect_that_has_left_is_said_to_be_gone_and_one_that_never_asked_has_a_number(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        sock = at.made.bare(zmq.DEALER)
        sock.connect(at.address)
        sock.send(request(1, source="192.0.2.7"))
        (submit,) = await at.controller.wait(wire.Submit, 1)
        sock.close(0)
        await at.controller.wait(wire.Cancel, 1)
        at.controller.send(named(submit.client), named(12345))
        unknown, gone = await told(at, 2)
        assert (gone["peer"], gone["source"]) == ("gone", "192.0.2.7")
        assert (unknown["client"], unknown.get("peer")) == (12345, None)


@on_loop
async def test_the_last_suspects_are_kept(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        at.controller.send(*(named(n) for n in range(1, SUSPECTS_MAX + 3)))
        at.controller.send(named(SUSPECTS_MAX, ref="n:1"))
        suspects = (await at.status(lambda status: status["suspects"] and status["suspects"][0]["ref"] == "n:1"))[
            "suspects"
        ]
        assert len(suspects) == SUSPECTS_MAX
        assert [suspect["client"] for suspect in suspects[:3]] == [SUSPECTS_MAX, SUSPECTS_MAX + 2, SUSPECTS_MAX + 1]
