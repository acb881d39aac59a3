"""mesh/net/links.py: connections that neither end knows to be dead, and whose links take whose place."""

import os
from typing import Any

import pytest
import zmq

from mesh import wire
from mesh.codes import LinkLoss
from mesh.identities import named
from tests.black_holes import Connection, connections, swallow
from tests.loops import on_loop
from tests.mesh.net.pairs import HELLO, PATIENT, QUIET, cancel
from tests.mesh.net.processes import Listening, envelope, hears, processes

BRISK = {"heartbeat_ms": 20.0, "silence_ms_max": 600.0}


def ends(listening: Listening) -> list[Connection]:
    """Both ends of all connections to the port, whose processes are this one."""
    number = int(listening.tcp.rpartition(":")[2])
    return [end for end in connections(os.getpid()) if number in (end.local, end.remote)]


@pytest.mark.parametrize("way", ["both", "to the port", "to the link"])
@on_loop
async def test_both_ends_miss_a_connection_that_leads_nowhere_and_others_go_on(way: str) -> None:
    async with processes(**BRISK) as made:
        listening = made.port(made.runtime())
        calling = made.link(made.runtime(), listening.addresses, "frontend-1")
        calling.link.send(HELLO)
        await calling.mail.count(1)
        number = int(listening.tcp.rpartition(":")[2])
        sides = {"both": ends(listening), "to the port": [], "to the link": []}
        for end in ends(listening):
            sides["to the port" if end.local == number else "to the link"].append(end)
        assert len(sides["both"]) == 2
        other = made.link(made.runtime(), listening.addresses, "frontend-2")
        other.link.send(HELLO)
        await other.mail.count(1)
        swallow(*sides[way])
        ((peer, why),) = await listening.lost.count(1)
        assert (peer, why in (LinkLoss.SILENT, LinkLoss.CLOSED) or "unreachable" in why) == ("frontend-1", True)
        ((peer, why),) = await calling.lost.count(1)
        assert (peer, why in (LinkLoss.SILENT, LinkLoss.CLOSED)) == ("controller-1", True)
        again = made.link(made.runtime(), listening.addresses, "frontend-1")
        again.link.send(cancel(7))
        await listening.mail.until(lambda mails: any(cancel(7) in mail.messages for mail in mails))
        assert listening.port.send("frontend-1", wire.Introduce())
        assert await again.messages(1) == [wire.Introduce()]
        assert other.lost.items == []


@on_loop
async def test_a_newer_link_of_a_member_takes_the_place_of_one_that_is_half_dead() -> None:
    async with processes(**PATIENT) as made:  # nobody is missed: all that happens is that a newer link comes
        listening = made.port(made.runtime())
        first = made.link(made.runtime(), listening.addresses)
        first.link.send(cancel(1))
        await listening.messages(1)
        swallow(*ends(listening))
        listening.port.send("frontend-1", wire.Serving(added=("m:1",), removed=()))  # goes nowhere
        second = made.link(made.runtime(), listening.addresses)
        second.link.send(cancel(2))
        await listening.messages(2)
        assert listening.port.superseded == 1
        assert listening.port.send("frontend-1", wire.Introduce())
        assert await second.messages(1) == [wire.Introduce()]
        assert (listening.port.peers(), listening.lost.items) == (["frontend-1"], [])


def dealer(made: Any, listening: Listening, number: int, peer: str = "controller-1", nonce: str = "ab") -> Any:
    sock = made.insider(zmq.DEALER, named("frontend-1", number, nonce, peer))
    sock.connect(listening.tcp)
    return sock


@on_loop
async def test_what_an_older_link_of_a_member_still_brings_is_not_read() -> None:
    async with processes(**PATIENT) as made:
        listening = made.port(made.runtime())
        newer, older = dealer(made, listening, 2), dealer(made, listening, 1)
        newer.send(envelope(cancel(2)))
        await listening.messages(1)
        older.send(envelope(cancel(1)))
        await listening_refuses(listening, 1)
        newer.send(envelope(cancel(3)))
        assert await listening.messages(2) == [cancel(2), cancel(3)]


async def listening_refuses(listening: Listening, number: int) -> None:
    """Returns once the port has refused so many envelopes."""
    sees = listening.mail
    hub = listening.port.transport.hub
    hub.on_turn(lambda now: sees(None) if listening.port.refusals.total >= number else None)
    hub.schedule_turn()
    await sees.until(lambda _: listening.port.refusals.total >= number)
    sees.items[:] = [mail for mail in sees.items if mail is not None]


@pytest.mark.parametrize("name", [b"frontend-1", named("frontend-1", 1, "cd", "controller-1"), b"frontend-1#1.ab@x"])
@on_loop
async def test_who_does_not_know_the_name_of_a_members_link_does_not_take_its_place(name: bytes) -> None:
    async with processes(**QUIET) as made:
        listening = made.port(made.runtime(), me="controller-1")
        first = dealer(made, listening, 1)
        first.send(envelope(cancel(1)))
        await listening.messages(1)
        thief = made.insider(zmq.DEALER, name)
        thief.connect(listening.tcp)
        thief.send(envelope(cancel(2)))
        await listening_refuses(listening, 1)
        assert listening.port.send("frontend-1", wire.Introduce())
        await hears(first)
        assert thief.poll(0) == 0


@on_loop
async def test_a_member_that_calls_somebody_else_is_not_heard_and_takes_nobodys_place() -> None:
    async with processes(**PATIENT) as made:
        listening = made.port(made.runtime(), me="controller-1")
        mine, astray = dealer(made, listening, 1), dealer(made, listening, 2, peer="controller-2")
        mine.send(envelope(cancel(1)))
        await listening.messages(1)
        astray.send(envelope(cancel(2)))
        await listening_refuses(listening, 1)
        assert listening.port.send("frontend-1", wire.Introduce())
        await hears(mine)
        assert listening.port.superseded == 0


@on_loop
async def test_a_member_in_this_process_that_calls_somebody_else_is_not_heard() -> None:
    async with processes(**PATIENT) as made:
        here = made.runtime()
        listening = made.port(here, me="controller-1")
        mine = made.link(here, listening.addresses, peer="controller-1")
        astray = made.link(here, listening.addresses[:1], peer="controller-2")
        assert await astray.lost.count(1) == [("controller-2", LinkLoss.UNUSABLE)]
        mine.link.send(cancel(1))
        assert await listening.messages(1) == [cancel(1)]


@on_loop
async def test_an_older_link_in_this_process_is_not_read_any_more() -> None:
    async with processes(**PATIENT) as made:
        here = made.runtime()
        listening = made.port(here)
        older, newer = (made.link(here, listening.addresses) for _ in range(2))
        older.link.send(cancel(1))
        newer.link.send(cancel(2))
        assert await listening.messages(1) == [cancel(2)]
        listening.port.send("frontend-1", wire.Introduce())
        assert await newer.messages(1) == [wire.Introduce()]
        older.link.close()
        newer.link.send(cancel(3))
        assert await listening.messages(2) == [cancel(2), cancel(3)]
        assert listening.lost.items == []


UNUSABLE = {
    "none": (),
    "only in memory, elsewhere": ("memory://nope",),
    "unknown transport": ("garbage://x",),
    "no port": ("tcp://127.0.0.1",),
    "no host": ("tcp://",),
    "not text for ZeroMQ": ("tcp://\0:1",),
}


@pytest.mark.parametrize("addresses", UNUSABLE.values(), ids=UNUSABLE)
@on_loop
async def test_a_link_without_an_address_that_can_be_called_is_lost_and_nothing_else_is(
    addresses: tuple[str, ...],
) -> None:
    async with processes(**PATIENT) as made:
        here = made.runtime()
        listening = made.port(made.runtime())
        good, bad = made.link(here, listening.addresses), made.link(here, addresses)
        bad.link.send(cancel(1))
        good.link.send(cancel(2))
        assert await bad.lost.count(1) == [("controller-1", LinkLoss.UNUSABLE)]
        assert await listening.messages(1) == [cancel(2)]
        assert not bad.link.open
        assert good.lost.items == []


@on_loop
async def test_a_peer_whose_name_makes_no_name_of_a_link_cannot_be_called() -> None:
    async with processes(**PATIENT) as made:
        listening = made.port(made.runtime())
        calling = made.link(made.runtime(), listening.addresses, peer="x" * 300)
        assert await calling.lost.count(1) == [("x" * 300, LinkLoss.UNUSABLE)]
