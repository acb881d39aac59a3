"""Decisions and the feedback about them, beside a real state's thread and a real Redis."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frontend import keeper
from frontend.core.applications.decisions import Decision, DecisionTable, Missing, Predicted
from frontend.core.applications.definitions import Definition, make_application
from frontend.core.applications.feedback import FeedbackDesk
from frontend.core.protocol import Feedback, Invalid
from frontend.keeper import StateKeeper
from mesh import wire
from selection.base import State
from selection.contexts import Key
from selection.stores.opening import open_store
from tests.loops import Told, on_loop
from tests.messages import names
from tests.selection.stores.redis_server import redis_server

SPEC = wire.ModelSpec(
    inputs=(wire.TensorSpec(name="x", dtype="float32", shape=(-1, 2)),),
    outputs=(wire.TensorSpec(name="y", dtype="float32", shape=(-1, 4)),),
    batch_max=8,
    slo_ms=100.0,
)
MODELS = ["a", "b"]


def decision(name: str, *, parked: bool = False) -> Decision:
    """Both models have said 1."""
    said = Predicted.of(np.array([1]))
    chances = dict.fromkeys(MODELS, 1.0)
    return Decision(name, "app", "", 0, "scores", dict.fromkeys(MODELS, said), [], chances, parked=parked)


class Desk:
    """A desk with one application, and what it told."""

    def __init__(self, url: str, folder: Path) -> None:
        self.keeper = StateKeeper(open_store(url, folder, 100, 60.0), asyncio.get_running_loop())
        self.table = DecisionTable("01234567", 10, 60.0, b"secret")
        specs: dict[str, wire.ModelSpec | None] = dict.fromkeys(MODELS, SPEC)
        app = make_application(Definition("app", MODELS, "exp4"), 1, specs, slo_ms_max=1000.0)
        self.learned, self.told, self.refused = Told(), Told(), Told()
        self.desk = FeedbackDesk(
            self.keeper, self.table, {"app": app}, self._learned, self.told, self.refused, lambda: 0.0
        )

    def _learned(self, key: Key, state: State) -> None:
        self.learned((key, state))

    def give(self, decision_id: str, **fields: Any) -> None:
        self.desk.take("client", Feedback(id=len(self.told.items), decision_id=decision_id, **fields), 0.0)


def test_an_id_says_whether_this_frontend_gave_it_and_nobody_can_make_one_up() -> None:
    table = DecisionTable("01234567", 2, 60.0, b"secret")
    ids = [table.next_id() for _ in range(3)]
    for name in ids:
        table.keep(decision(name), 0.0)
    table.check()
    assert isinstance(table.find(ids[2], 60.0), Decision)
    for name, now, code in [
        (ids[0], 1.0, "late"),  # two came after it
        (ids[2], 60.1, "late"),
        (DecisionTable("01234567", 2, 60.0, b"another").next_id(), 1.0, "unknown"),
        (ids[2].rpartition("-")[0], 1.0, "unknown"),
        ("01234567-ff-" + ids[2].rpartition("-")[2], 1.0, "unknown"),
        ("", 1.0, "unknown"),
    ]:
        found = table.find(name, now)
        assert isinstance(found, Missing)
        assert found.code == code, name


@on_loop
async def test_feedback_that_several_frontends_could_take_is_held_too_while_the_store_is_down(tmp_path: Path) -> None:
    with redis_server(tmp_path) as url:
        at = Desk(url, tmp_path)
        at.keeper.start()
    name = at.table.next_id()
    at.table.keep(decision(name, parked=True), 0.0)
    at.give(name, label=2)
    ((_, answer),) = await at.told.count(1)
    assert (answer["applied"], answer["reason"]) == (False, "store_down")
    assert answer["message"]
    assert at.keeper.held == 1
    at.give(name, label=2)
    assert (await at.told.count(2))[1][1]["reason"] == "duplicate"
    with redis_server(tmp_path, int(url.rpartition(":")[2].partition("/")[0])):
        ((key, state),) = await at.learned.count(1)
        assert (key, state.rounds, state.arms["a"].seen) == (("app", ""), 1, 1)
        at.keeper.stop()
    assert len(at.told.items) == 2
    assert at.refused.items == []


@on_loop
async def test_feedback_of_another_kind_than_the_models_give_now_teaches_nothing(tmp_path: Path) -> None:
    at = Desk("", tmp_path)
    name = at.table.next_id()
    known = decision(name)
    known.kind = "numeric"
    at.table.keep(known, 0.0)
    at.give(name, label=1)
    ((_, answer),) = at.told.items
    assert answer["reason"] == "nothing_to_learn"
    assert names(answer["message"], "numeric", "scores")


@on_loop
async def test_a_loss_teaches_nothing_where_only_shadows_answered(tmp_path: Path) -> None:
    at = Desk("", tmp_path)
    name = at.table.next_id()
    known = decision(name)
    known.shadows = MODELS
    at.table.keep(known, 0.0)
    at.give(name, loss=0.5)
    ((_, answer),) = at.told.items
    assert answer["reason"] == "nothing_to_learn"
    assert answer["message"]


@on_loop
async def test_more_feedback_than_can_be_learned_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "JOBS_MAX", 1)
    at = Desk("", tmp_path)
    names = [at.table.next_id() for _ in range(2)]
    for name in names:
        at.table.keep(decision(name), 0.0)
    at.give(names[0], label=1)
    with pytest.raises(Invalid) as refused:
        at.give(names[1], label=1)
    assert (refused.value.code, refused.value.status) == ("busy", "rejected")
    at.keeper.start()
    await at.learned.count(1)
    at.give(names[1], label=1)
    await at.learned.count(2)
    at.keeper.stop()
