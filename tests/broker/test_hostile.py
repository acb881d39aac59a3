"""broker/service.py: who says what it may not is told why, and changes nothing."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from mesh import wire
from mesh.codes import ReplyCode
from tests.broker.test_service import mesh
from tests.loops import on_loop
from tests.mesh.net.brokers import SPEC, Caller, listens, members


def member(name: str, role: str = "controller", **changes: Any) -> wire.Member:
    return wire.Member(id=name, role=role, host="here", **{"endpoints": listens(name), **changes})


@pytest.mark.parametrize(
    "said",
    [
        member("rogue", endpoints={}),
        member("rogue", endpoints={"clients": ("tcp://127.0.0.1:1",)}),
        member("rogue", endpoints={"control": ()}),
        member("rogue", endpoints={"control": ("garbage://x",)}),
        member("rogue", endpoints={"control": ("memory://x",)}),
        member("rogue", endpoints={"control": ("tcp://127.0.0.1:1", "tcp://127.0.0.1:0")}),
        member("rogue", endpoints={"control": ("tcp://127.0.0.1:99999",)}),
        member("rogue", endpoints={"control": ("tcp://ro gue:1",)}),
        member("controller-1"),
        member("frontend-1", "frontend"),
        member("rogue", "king"),
        member("rogue", "frontend", offer=wire.Offer(ref="own:1", spec=SPEC, code="c")),
        member("rogue", "frontend", child=wire.ChildState(model="own", serves=True, for_s=1.0)),
        member("rogue", "gpu_worker", offer=wire.Offer(ref="own:one", spec=SPEC, code="c")),
        member(
            "rogue", "gpu_worker",
            offer=wire.Offer(ref="own:1", code="c", spec=msgspec.structs.replace(SPEC, inputs=(
                wire.TensorSpec(name="x", dtype="float32", shape=(4, -1)),
            ))),
        ),
    ],
    ids=lambda said: f"{said.id} {said.role} {said.endpoints}",
)  # fmt: skip
@on_loop
async def test_a_member_that_cannot_be_is_told_why_and_is_in_no_table(tmp_path: Path, said: wire.Member) -> None:
    async with mesh(tmp_path) as at:
        rogue = at.caller("rogue")
        rogue.link.send(wire.Register(member=said))
        await rogue.mail.until(lambda _: rogue.replies())
        (reply,) = rogue.replies()
        assert (reply.ok, reply.code) == (False, ReplyCode.BAD_MEMBER)
        assert len(reply.message) > 10
        await rogue.ask(wire.GetTable(call=1))
        table = rogue.tables()[-1]
        assert "rogue" not in members(table)
        assert {model.owner for model in table.models} == {"controller-1"}


@on_loop
async def test_only_the_model_s_owner_reports_of_it(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        poisoned = msgspec.structs.replace(SPEC, inputs=SPEC.outputs)
        strangers: list[Caller] = [at.caller(name) for name in ("stranger", "frontend-7", "operator-7")]
        strangers[1].register("frontend")
        for call, stranger in enumerate(strangers, 1):
            before = (await _models(stranger, call))["m"]
            stranger.link.send(wire.PrepareReport(ref="m:1", ok=True, spec=poisoned))
            stranger.link.send(wire.PrepareReport(ref="m:1", ok=False, faults=("broken",)))
            after = (await _models(stranger, 10 + call))["m"]
            assert after == before


@on_loop
async def test_a_call_that_is_out_of_range_is_answered_and_those_beside_it_are_obeyed(tmp_path: Path) -> None:
    async with mesh(tmp_path) as at:
        operator = at.caller("operator-1")
        operator.link.send(wire.Undeploy(call=5, name="x" * 10_000))
        assert (await operator.ask(wire.GetTable(call=6))).ok
        (reply,) = [reply for reply in operator.replies() if reply.call == 5]
        assert (reply.ok, reply.code) == (False, ReplyCode.BAD_MESSAGE)


async def _models(caller: Caller, call: int) -> dict[str, wire.ModelEntry]:
    await caller.ask(wire.GetTable(call=call))
    return {model.name: model for model in caller.tables()[-1].models}
