"""frontend/controllers.py: which controllers a frontend is linked to while they come and go at one address."""

import time

from frontend.controllers import Controllers
from mesh import wire
from tests.loops import Told, on_loop
from tests.mesh.net.processes import Processes, processes

NOBODY = ("tcp://127.0.0.1:1",)  # nobody listens there
HELLO = wire.FrontendHello(member="frontend-1", host="here", results=())


def table(owner: str, *controllers: tuple[str, tuple[str, ...]]) -> wire.Table:
    """A table with model `m` of this owner, and these controllers with their addresses in order of registration."""
    members = tuple(
        wire.Member(id=name, role="controller", host="here", endpoints={"control": at}) for name, at in controllers
    )
    entry = wire.ModelEntry(name="m", current="1", target=None, versions=("1",), owner=owner)
    shards = {name: 1 for name, _ in controllers}
    return wire.Table(epoch=1, members=members, models=(entry,), shards=shards, workers={})


def links(made: Processes, lags: Told | None = None) -> tuple[Controllers, Told]:
    """A frontend's links, and the controllers they lost. `lags`: how long its mail waits."""
    lost = Told()
    transport = made.runtime().transport
    return Controllers(transport, lambda: HELLO, Told(), Told(), lags or Told(), lost, lambda: None), lost


@on_loop
async def test_a_link_that_waits_for_a_dead_controller_is_closed_when_the_table_forgets_it() -> None:
    """Otherwise it would connect to the successor at the same address, and take the frontend's name there."""
    async with processes() as made:
        controllers, lost = links(made)
        controllers.table_changed(table("controller-1", ("controller-1", NOBODY)))
        assert controllers.owner("m") == "controller-1"
        controllers.table_changed(table("controller-1"))
        assert lost.items == ["controller-1"]
        assert controllers.owner("m") is None


@on_loop
async def test_a_controller_that_answers_is_kept_though_the_table_forgets_it() -> None:
    async with processes() as made:
        controllers, lost = links(made)
        listening = made.port(made.runtime())
        controllers.table_changed(table("controller-1", ("controller-1", listening.addresses)))
        await listening.messages(1)
        listening.port.send("frontend-1", wire.Serving(added=("m:1",), removed=(), controller="controller-1"))
        listening.port.transport.hub.schedule_turn()
        while not controllers.serves("m", "m:1"):
            await listening.mail.count(len(listening.mail.items) + 1)  # its next heartbeat
        controllers.table_changed(table("controller-1"))
        assert lost.items == []
        assert controllers.owner("m") == "controller-1"


@on_loop
async def test_of_two_controllers_at_one_address_only_the_later_one_is_called() -> None:
    async with processes() as made:
        controllers, lost = links(made)
        listening = made.port(made.runtime())
        both = (("controller-1", listening.addresses), ("controller-2", listening.addresses))
        controllers.table_changed(table("controller-2", *both))
        assert await listening.messages(1) == [HELLO]
        assert controllers.owner("m") == "controller-2"
        controllers.table_changed(table("controller-1", *both))
        assert controllers.owner("m") is None
        assert lost.items == []


@on_loop
async def test_mail_waits_as_long_as_where_it_waits_longest_and_nowhere_once_that_controller_is_gone() -> None:
    """Whoever is killed while it is behind never says that it is not: its successor would get fewer calls for good."""
    async with processes() as made:
        lags = Told()
        controllers, _ = links(made, lags)
        first, second = made.port(made.runtime()), made.port(made.runtime())
        both = (("controller-1", first.addresses), ("controller-2", second.addresses))
        controllers.table_changed(table("controller-1", *both))
        for listening, lag_s, told in ((first, 0.5, 1), (second, 0.1, 2)):
            await listening.messages(1)
            listening.port.send("frontend-1", wire.IntakeLag(lag_s=lag_s))
            listening.port.transport.hub.schedule_turn()
            await lags.count(told)
        first.port.send("frontend-1", wire.Goodbye())
        first.port.transport.hub.schedule_turn()
        await lags.count(3)
        second.port.send("frontend-1", wire.Goodbye())
        second.port.transport.hub.schedule_turn()
        await lags.count(4)
        assert lags.items == [0.5, 0.5, 0.1, 0.0]


@on_loop
async def test_a_controller_in_this_process_is_not_silent_while_there_is_nothing_to_say() -> None:
    async with processes() as made:
        here = made.runtime()
        controllers = Controllers(here.transport, lambda: HELLO, Told(), Told(), Told(), Told(), lambda: None)
        listening = made.port(here)
        controllers.table_changed(table("controller-1", ("controller-1", listening.addresses)))
        assert controllers.heard_ago(time.monotonic()) == {"controller-1": None}
        await listening.messages(1)
        listening.port.send("frontend-1", wire.Serving(added=("m:1",), removed=(), controller="controller-1"))
        turns = Told()
        here.hub.on_turn(turns)
        here.hub.schedule_turn()
        await turns.until(lambda _: controllers.serves("m", "m:1"))
        later = time.monotonic() + 100.0
        assert controllers.heard_ago(later) == {"controller-1": 0.0}
        (link,) = controllers.describe(later)
        assert (link["up"], link["heard_ago_s"]) == (True, 0.0)
