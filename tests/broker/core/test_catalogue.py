"""broker/core/catalogue.py: models, versions and applications."""

from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from broker.core.catalogue import HISTORY_MAX, Catalogue, Replies
from broker.core.records import ModelRecord
from mesh import wire
from mesh.codes import PackageCode, ReplyCode
from mesh.names import NAME, VERSION, listed
from tests.broker.core.catalogues import ANN, BEN, FOUND, SPEC, broken, offer, prepared, reopened, served, state, told
from tests.messages import names

# -- the repository ---------------------------------------------------------------------------------------------------


def test_a_new_package_is_deployed_in_its_newest_version(catalogue: Any) -> None:
    catalogue.scan({"m": ["1", "2", "10"], "n": ["1"]})
    assert catalogue.models == {
        "m": ModelRecord("m", target="10", versions=["1", "2", "10"]),
        "n": ModelRecord("n", target="1", versions=["1"]),
    }
    assert catalogue.changed_models == {"m", "n"}


def test_a_package_without_versions_waits_for_one(catalogue: Any) -> None:
    catalogue.scan({"m": []})
    assert state(catalogue) == (None, None, [])
    catalogue.scan({"m": ["1"]})
    assert state(catalogue) == (None, "1", [])


def test_a_package_without_versions_cannot_be_deployed_and_is_not_said_to_be_missing(catalogue: Any) -> None:
    ((_, reply),) = catalogue.deploy(("ann", 1), "m", None, {"m": []})
    assert (reply.ok, reply.code) == (False, ReplyCode.NO_VERSION)


def test_a_new_version_of_a_known_model_is_only_taken_note_of(serving: Any) -> None:
    assert state(serving) == ("1", None, [])
    assert serving.models["m"].versions == ["1", "2", "3"]


def test_a_scan_that_finds_nothing_new_changes_nothing(serving: Any) -> None:
    serving.changed_models.clear()
    serving.scan(FOUND)
    assert serving.changed_models == set()


def test_an_undeployed_model_stays_undeployed_when_the_repository_is_scanned(serving: Any) -> None:
    serving.undeploy(ANN, "m")
    serving.scan({"m": ["1", "2", "3", "4"]})
    assert serving.deployed() == {}
    assert serving.models["m"].versions == ["1", "2", "3", "4"]


def test_a_model_that_could_not_be_prepared_is_tried_again_at_the_next_scan(catalogue: Any) -> None:
    catalogue.scan({"m": ["1"]})
    catalogue.reported(broken("m:1", "weights are missing"))
    assert state(catalogue) == (None, None, [])
    catalogue.scan({"m": ["1"]})
    assert state(catalogue) == (None, "1", [])


def test_a_scan_leaves_a_deployment_that_somebody_waits_for_alone(catalogue: Any) -> None:
    catalogue.deploy(ANN, "m", "1", FOUND)
    catalogue.scan(FOUND)
    assert catalogue.reported(prepared("m:1")) == told(ANN, "", "m:1")


# -- deploy -----------------------------------------------------------------------------------------------------------


def test_a_deployment_is_answered_when_the_version_is_prepared(serving: Any) -> None:
    assert serving.deploy(ANN, "m", "2", FOUND) == []
    assert state(serving) == ("1", "2", [])
    assert serving.reported(prepared("m:2")) == told(ANN, "", "m:2")
    assert state(serving) == ("2", None, ["1"])


def test_a_deployment_that_names_no_version_takes_the_newest(serving: Any) -> None:
    serving.deploy(ANN, "m", None, FOUND)
    assert state(serving) == ("1", "3", [])


def test_all_who_wait_for_a_version_are_answered(serving: Any) -> None:
    serving.deploy(ANN, "m", "2", FOUND)
    serving.deploy(BEN, "m", "2", FOUND)
    assert serving.reported(prepared("m:2")) == told(ANN, "", "m:2") + told(BEN, "", "m:2")
    assert serving.reported(prepared("m:2")) == []


def test_a_failed_deployment_says_why_and_changes_nothing_else(serving: Any) -> None:
    serving.deploy(ANN, "m", "2", FOUND)
    replies = serving.reported(broken("m:2", "no graph", "bad weights"))
    assert replies == told(ANN, PackageCode.BAD_PACKAGE, "m:2", faults=("no graph", "bad weights"))
    assert state(serving) == ("1", None, [])
    assert serving.models["m"].fault == "no graph; bad weights"


def test_a_deployment_that_succeeds_clears_the_fault_of_the_last(serving: Any) -> None:
    serving.deploy(ANN, "m", "2", FOUND)
    serving.reported(broken("m:2", "no graph"))
    serving.deploy(ANN, "m", "3", FOUND)
    assert serving.models["m"].fault == ""
    serving.reported(prepared("m:3"))
    assert serving.models["m"].fault == ""


def test_a_deployment_of_the_current_version_is_answered_at_once(serving: Any) -> None:
    assert serving.deploy(ANN, "m", "1", FOUND) == told(ANN, "", "m:1")
    assert state(serving) == ("1", None, [])


def test_the_current_version_deployed_again_ends_a_deployment_under_way(serving: Any) -> None:
    serving.deploy(ANN, "m", "2", FOUND)
    assert serving.deploy(BEN, "m", "1", FOUND) == [
        *told(ANN, ReplyCode.SUPERSEDED, "m:1"),
        *told(BEN, "", "m:1"),
    ]
    assert state(serving) == ("1", None, [])
    assert serving.reported(prepared("m:2")) == []
    assert state(serving) == ("1", None, [])


def test_another_deployment_takes_over_and_the_first_is_told(serving: Any) -> None:
    serving.deploy(ANN, "m", "2", FOUND)
    assert serving.deploy(BEN, "m", "3", FOUND) == told(ANN, ReplyCode.SUPERSEDED, "m:3")
    assert serving.reported(prepared("m:2")) == []
    assert serving.reported(prepared("m:3")) == told(BEN, "", "m:3")


def test_another_deployment_takes_over_before_there_was_any_current_version(catalogue: Any) -> None:
    catalogue.deploy(ANN, "m", "1", FOUND)
    assert catalogue.deploy(BEN, "m", "3", FOUND) == told(ANN, ReplyCode.SUPERSEDED, "m:3")


def test_a_package_that_is_not_there_is_refused_with_those_that_are(serving: Any) -> None:
    refused = told(ANN, ReplyCode.UNKNOWN_MODEL, "'x'", "m, n", field="name")
    assert serving.deploy(ANN, "x", None, {"n": ["1"], "m": ["1"]}) == refused
    assert serving.deploy(ANN, "x", None, {}) == told(ANN, ReplyCode.UNKNOWN_MODEL, "'x'", "none", field="name")


def test_a_version_that_is_not_there_is_refused_with_those_that_are(serving: Any) -> None:
    refused = told(ANN, ReplyCode.UNKNOWN_VERSION, "'m'", "'9'", "1, 2, 3", field="version")
    assert serving.deploy(ANN, "m", "9", FOUND) == refused
    assert state(serving) == ("1", None, [])


@pytest.mark.parametrize("version", ["9", None])
def test_a_version_that_only_looks_like_one_is_refused_with_the_reason(serving: Any, version: str | None) -> None:
    (replied,) = serving.deploy(ANN, "m", version, FOUND, {"m:9": "no model.toml"})
    assert replied == told(ANN, PackageCode.BAD_PACKAGE, "no model.toml", field="version")[0]
    (replied,) = serving.deploy(ANN, "n", version, {}, {"n": "cannot be read"})
    assert replied[1].message == "cannot be read"
    assert state(serving) == ("1", None, [])


def test_an_older_version_that_only_looks_like_one_keeps_no_newer_one_from_being_deployed(serving: Any) -> None:
    assert serving.deploy(ANN, "m", None, FOUND, {"m:2": "no model.toml", "x:9": "no model.toml"}) == []
    assert state(serving) == ("1", "3", [])


def test_a_package_that_has_a_container_s_name_is_refused_as_that(catalogue: Any) -> None:
    served(catalogue)
    running = catalogue.deploy(ANN, "f", "9", {})[0][1]
    named = catalogue.deploy(ANN, "f", "9", {"f": ["9"]})[0][1]
    assert (running.code, running.field) == (ReplyCode.UNKNOWN_VERSION, "version")
    assert (named.code, named.field) == (PackageCode.NAME_TAKEN, "name")
    catalogue.withdrawn("c1")
    stopped = catalogue.deploy(ANN, "f", None, {})[0][1]
    named = catalogue.deploy(ANN, "f", None, {"f": ["9"]})[0][1]
    assert (stopped.ok, named.ok) == (False, False)
    assert (stopped.code, named.code) == (ReplyCode.NO_REPLICA, PackageCode.NAME_TAKEN)


def test_a_refused_deployment_does_not_start_another(catalogue: Any) -> None:
    catalogue.scan({"m": ["1"]})
    catalogue.reported(broken("m:1", "no graph"))
    catalogue.deploy(ANN, "m", "9", {"m": ["1"]})
    assert state(catalogue) == (None, None, [])


def test_a_report_of_a_model_or_version_that_nobody_asked_for_changes_nothing(serving: Any) -> None:
    before = list(state(serving))
    for report in (prepared("m:2"), broken("m:3", "?"), prepared("n:1"), broken("n:1", "late"), prepared("m")):
        assert serving.reported(report) == []
    assert list(state(serving)) == before
    assert serving.models["m"].fault == ""


def test_the_spec_of_the_current_version_follows_the_latest_report(serving: Any) -> None:
    serving.changed_models.clear()
    serving.reported(prepared("m:1"))
    assert serving.changed_models == set()
    other = wire.ModelSpec(inputs=SPEC.inputs, outputs=SPEC.outputs, batch_max=16, slo_ms=50.0)
    assert serving.reported(wire.PrepareReport(ref="m:1", ok=True, spec=other)) == []
    assert serving.models["m"].specs == {"1": other}
    assert serving.changed_models == {"m"}


# -- rollback and undeploy --------------------------------------------------------------------------------------------


def deploy(catalogue: Any, version: str) -> None:
    catalogue.deploy(ANN, "m", version, FOUND)
    catalogue.reported(prepared(f"m:{version}"))


def roll_back(catalogue: Any) -> Replies:
    replies: Replies = catalogue.rollback(BEN, "m")
    target = catalogue.models["m"].target
    return replies if target is None else replies + catalogue.reported(prepared(f"m:{target}"))


def test_rollbacks_go_back_over_what_was_current_step_by_step(serving: Any) -> None:
    deploy(serving, "2")
    deploy(serving, "3")
    assert state(serving) == ("3", None, ["1", "2"])
    assert roll_back(serving) == told(BEN, "", "m:2")
    assert state(serving) == ("2", None, ["1"])
    assert roll_back(serving) == told(BEN, "", "m:1")
    assert state(serving) == ("1", None, [])
    assert roll_back(serving) == told(BEN, ReplyCode.NO_PREVIOUS, "'m'", "'1'", field="name")


def test_a_rollback_to_a_certain_version_can_be_asked_for_again_and_goes_no_further_back(serving: Any) -> None:
    deploy(serving, "2")
    deploy(serving, "3")
    assert serving.rollback(ANN, "m", "2") == serving.rollback(BEN, "m", "2") == []
    assert [reply.ok for _, reply in serving.reported(prepared("m:2"))] == [True, True]
    assert serving.rollback(ANN, "m", "2") == told(ANN, "", "m:2")
    assert state(serving) == ("2", None, ["1"])
    ((_, reply),) = serving.rollback(ANN, "m", "3")
    assert (reply.ok, reply.field, reply.code) == (False, "version", ReplyCode.PREVIOUS_CHANGED)
    assert state(serving) == ("2", None, ["1"])


def test_what_was_current_serves_until_the_rollback_is_prepared(serving: Any) -> None:
    deploy(serving, "2")
    assert serving.rollback(BEN, "m") == []
    assert state(serving) == ("2", "1", ["1"])
    serving.reported(broken("m:1", "its files are gone"))
    assert state(serving) == ("2", None, ["1"])


def test_a_version_deployed_by_name_can_be_rolled_back_even_if_it_is_an_old_one(serving: Any) -> None:
    deploy(serving, "2")
    deploy(serving, "1")
    assert roll_back(serving) == told(BEN, "", "m:2")


def test_the_history_keeps_the_newest(serving: Any) -> None:
    versions = [str(i) for i in range(1, HISTORY_MAX + 3)]
    for version in versions[1:]:
        serving.deploy(ANN, "m", version, {"m": versions})
        serving.reported(prepared(f"m:{version}"))
    assert serving.models["m"].history == versions[1:-1]
    assert len(serving.models["m"].history) == HISTORY_MAX


def test_an_undeployed_model_is_gone_from_the_table_and_can_come_back(serving: Any) -> None:
    assert serving.undeploy(ANN, "m") == told(ANN, "", "m")
    assert serving.entries({}) == ()
    assert state(serving)[:2] == (None, None)
    deploy(serving, "2")
    assert state(serving)[:2] == ("2", None)
    assert roll_back(serving) == told(BEN, "", "m:1")


def test_a_model_deployed_again_in_the_version_it_had_rolls_back_to_the_one_before(serving: Any) -> None:
    deploy(serving, "2")
    serving.undeploy(ANN, "m")
    deploy(serving, "2")
    assert roll_back(serving) == told(BEN, "", "m:1")


def test_an_undeployed_model_ends_the_deployment_under_way(serving: Any) -> None:
    serving.deploy(ANN, "m", "2", FOUND)
    assert serving.undeploy(BEN, "m") == [
        *told(ANN, ReplyCode.UNDEPLOYED, "m"),
        *told(BEN, "", "m"),
    ]
    assert serving.reported(prepared("m:2")) == []
    assert serving.deployed() == {}


def test_a_model_that_is_not_deployed_cannot_be_undeployed_or_rolled_back(serving: Any) -> None:
    code = ReplyCode.NOT_DEPLOYED
    assert serving.undeploy(ANN, "x") == told(ANN, code, "'x'", ": m", field="name")
    assert serving.rollback(ANN, "x") == told(ANN, code, "'x'", field="name")
    serving.undeploy(ANN, "m")
    assert serving.undeploy(ANN, "m") == told(ANN, code, "'m'", "none", field="name")
    assert serving.rollback(ANN, "m") == told(ANN, code, "'m'", field="name")


def test_a_caller_that_left_is_not_answered_and_its_call_goes_on(serving: Any) -> None:
    serving.deploy(ANN, "m", "2", FOUND)
    serving.deploy(BEN, "m", "2", FOUND)
    serving.drop_calls(ANN[0])
    assert serving.reported(prepared("m:2")) == told(BEN, "", "m:2")
    assert state(serving) == ("2", None, ["1"])


# -- the table --------------------------------------------------------------------------------------------------------


def test_the_table_holds_every_deployed_model_in_order_of_name(serving: Any) -> None:
    serving.scan({"b": ["1"], "a": ["7"]})
    serving.reported(broken("b:1", "no graph"))
    serving.deploy(ANN, "m", "3", FOUND)
    assert serving.entries({"m": "controller-1", "a": "controller-2"}) == (
        wire.ModelEntry(name="a", current=None, target="7", versions=("7",), owner="controller-2"),
        wire.ModelEntry(
            name="b", current=None, target=None, versions=("1",), owner=None, fault="no graph", fault_code="bad_package"
        ),
        wire.ModelEntry(
            name="m", current="1", target="3", versions=("1", "2", "3"), owner="controller-1", spec=SPEC, tries=1
        ),
    )


# -- applications -----------------------------------------------------------------------------------------------------


def app(**fields: Any) -> dict[str, Any]:
    return {"name": "digits", "models": ["m"], "policy": "exp3", **fields}


def test_an_application_is_made_changed_and_deleted(serving: Any) -> None:
    reply = serving.put_app(5, app(), create=True)
    assert reply == wire.CallReply(call=5, ok=True, message=reply.message, revision=1)
    reply = serving.put_app(6, app(slo_ms=20), create=False)
    assert reply == wire.CallReply(call=6, ok=True, message=reply.message, revision=2)
    assert serving.app_entries() == (wire.AppEntry(name="digits", definition=app(slo_ms=20), revision=2, created=1),)
    assert serving.changed_apps == {"digits"}
    reply = serving.drop_app(7, "digits")
    assert reply == wire.CallReply(call=7, ok=True, message=reply.message)
    assert serving.app_entries() == ()


def test_applications_are_listed_in_order_of_name(serving: Any) -> None:
    for name in ("b", "a", "c"):
        serving.put_app(1, app(name=name), create=True)
    assert [entry.name for entry in serving.app_entries()] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("definition", "create", "field", "code", "named"),
    [
        (app(name="9 lives"), True, "app.name", "bad_app", (NAME.pattern, "'9 lives'")),
        (app(name=7), True, "app.name", "bad_app", (NAME.pattern, 7)),
        ({"models": ["m"]}, True, "app.name", "bad_app", (NAME.pattern, None)),
        (app(name="there"), True, "app.name", "app_exists", ("'there'", "update_app")),
        (app(name="x"), False, "app.name", "unknown_app", ("'x'", "there")),
        (app(models=["m", "nowhere", "nobody"]), True, "app.models", "bad_app", ("nowhere, nobody", ": m")),
        (app(name="there", models=["nowhere"]), False, "app.models", "bad_app", ("nowhere", ": m")),
    ],
)
def test_a_wrong_application_is_refused_with_the_field(
    serving: Any, definition: dict[str, Any], create: bool, field: str, code: str, named: tuple[object, ...]
) -> None:
    serving.put_app(1, app(name="there"), create=True)
    serving.changed_apps.clear()
    reply = serving.put_app(5, definition, create=create)
    assert reply == wire.CallReply(call=5, ok=False, message=reply.message, field=field, code=code)
    assert names(reply.message, *named)
    assert serving.changed_apps == set()
    assert list(serving.apps) == ["there"]


@pytest.mark.parametrize("models", [5, None, "m", {"m": 1}, [["m"]], [{}], []])
def test_an_application_whose_models_are_no_list_of_names_is_refused(serving: Any, models: object) -> None:
    reply = serving.put_app(5, app(models=models), create=True)
    assert (reply.ok, reply.field, reply.code) == (False, "app.models", "bad_app")


def test_an_application_that_is_not_there_cannot_be_deleted(serving: Any) -> None:
    reply = serving.drop_app(5, "x")
    assert reply == wire.CallReply(call=5, ok=False, message=reply.message, field="app", code="unknown_app")
    assert names(reply.message, "'x'", "none")


def test_a_model_that_an_application_uses_cannot_be_undeployed(serving: Any) -> None:
    serving.put_app(1, app(name="b"), create=True)
    serving.put_app(2, app(name="a"), create=True)
    assert serving.undeploy(ANN, "m") == told(ANN, ReplyCode.IN_USE, "'m'", "a, b", field="name")
    assert state(serving) == ("1", None, [])
    serving.drop_app(3, "a")
    serving.drop_app(4, "b")
    assert serving.undeploy(ANN, "m") == told(ANN, "", "m")


def test_an_application_made_anew_under_an_old_name_has_another_revision(serving: Any) -> None:
    first = serving.put_app(1, app(), create=True).revision
    serving.drop_app(2, "digits")
    assert serving.put_app(3, app(slo_ms=20), create=True).revision != first


def test_of_very_many_names_a_sentence_has_the_first() -> None:
    assert listed([]) == "none"
    assert listed({"b": 1, "a": 2}) == "a, b"
    names = [f"m{number:02}" for number in range(25)]
    assert listed(names[:20]) == ", ".join(names[:20])
    assert listed(reversed(names)) == ", ".join(names[:20]) + " and 5 more"


def test_an_application_is_created_once_and_another_of_its_name_again(serving: Any) -> None:
    def created() -> list[int]:
        return [entry.created for entry in serving.app_entries()]

    serving.put_app(1, app(), create=True)
    first = created()
    serving.put_app(2, app(slo_ms=20), create=False)
    assert created() == first
    serving.drop_app(3, "digits")
    serving.put_app(4, app(), create=True)
    assert created() != first


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "A", "0", "resnet18", "a.b-c_d", "x" * 64])
def test_a_name_may_be(name: str) -> None:
    assert NAME.fullmatch(name)


@pytest.mark.parametrize("name", ["", ".a", "-a", "_a", "a b", "a/b", "a:b", "a\n", "ä", "x" * 65])
def test_a_name_may_not_be(name: str) -> None:
    assert not NAME.fullmatch(name)


@pytest.mark.parametrize(
    ("version", "good"), [("1", True), ("9" * 18, True), ("9" * 19, False), ("", False), ("v1", False)]
)
def test_a_version_is_a_string_of_digits(version: str, good: bool) -> None:
    assert bool(VERSION.fullmatch(version)) is good


# -- any order of events ----------------------------------------------------------------------------------------------

MODELS = st.sampled_from(["m", "n"])
VERSIONS = st.sampled_from(["1", "2", "3"])
PEERS = st.sampled_from(["ann", "ben"])
CONTENTS = st.sampled_from(["", "A", "B"])


class AnyOrder(RuleBasedStateMachine):
    """Every call is answered exactly once, unless its caller left; the invariants hold after every event."""

    @initialize()
    def begin(self) -> None:
        self.catalogue = Catalogue()
        self.found = {"m": ["1", "2"], "n": ["1"]}
        self.calls = 0
        self.open: set[tuple[str, int]] = set()
        self.contents: dict[tuple[str, str], str] = {}  # {(model, version): content ever served under it}

    def _call(self, peer: str) -> tuple[str, int]:
        self.calls += 1
        self.open.add((peer, self.calls))
        return peer, self.calls

    def _answered(self, replies: Replies) -> None:
        for key, _ in replies:
            self.open.remove(key)

    @rule()
    def a_version_comes(self) -> None:
        self.found = {"m": ["1", "2", "3"], "n": ["1", "2"]}

    @rule()
    def scan(self) -> None:
        self.catalogue.scan(self.found)

    @rule(peer=PEERS, name=MODELS, version=VERSIONS | st.none())
    def deploy(self, peer: str, name: str, version: str | None) -> None:
        self._answered(self.catalogue.deploy(self._call(peer), name, version, self.found))

    @rule(peer=PEERS, name=MODELS)
    def rollback(self, peer: str, name: str) -> None:
        self._answered(self.catalogue.rollback(self._call(peer), name))

    @rule(peer=PEERS, name=MODELS)
    def undeploy(self, peer: str, name: str) -> None:
        self._answered(self.catalogue.undeploy(self._call(peer), name))

    @rule(name=MODELS, version=VERSIONS, ok=st.booleans(), ready=st.booleans(), content=CONTENTS)
    def report(self, name: str, version: str, ok: bool, ready: bool, content: str) -> None:
        current = self.catalogue.models[name].current if name in self.catalogue.models else None
        ref = f"{name}:{version}"
        report = wire.PrepareReport(ref=ref, ok=ok, spec=SPEC, content=content if ok else "", ready=ready)
        differs = self.catalogue.differs(report)
        self._answered(self.catalogue.reported(report))
        if (not ok or differs or not ready) and name in self.catalogue.models:
            assert self.catalogue.models[name].current == current  # a failed deployment leaves it current

    @rule(name=MODELS)
    def reopen(self, name: str) -> None:
        if name in self.catalogue.models:
            assert reopened(self.catalogue.models[name]) == self.catalogue.models[name]

    @rule(peer=PEERS)
    def leave(self, peer: str) -> None:
        self.catalogue.drop_calls(peer)
        self.open = {key for key in self.open if key[0] != peer}

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "catalogue"):
            return
        self.catalogue.check()
        assert sorted(self.catalogue.open_calls()) == sorted(self.open)
        for name, model in self.catalogue.models.items():
            assert not model.history or model.history[-1] != model.current
            for version, content in model.contents.items():  # contents never change
                assert self.contents.setdefault((name, version), content) == content


AnyOrder.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None, derandomize=True)
TestAnyOrder = AnyOrder.TestCase


# -- containers -------------------------------------------------------------------------------------------------------


def test_a_container_s_model_becomes_known_and_may_be_in_an_application() -> None:
    catalogue = Catalogue()
    served(catalogue)
    (entry,) = catalogue.entries({})
    assert (entry.name, entry.current, entry.container) == ("f", "1", True)
    assert catalogue.put_app(1, {"name": "a", "models": ["f"]}, create=True).ok


def test_a_restart_of_all_replicas_is_a_new_build_and_one_more_replica_is_not() -> None:
    catalogue = Catalogue()
    first = served(catalogue).build
    assert catalogue.offered("c2", offer()) is None
    assert catalogue.models["f"].specs["1"].build == first
    catalogue.withdrawn("c1")
    catalogue.withdrawn("c2")
    assert served(catalogue, "c3").build != first


def test_other_code_under_a_version_that_is_known_is_refused_though_nobody_serves_it_any_more() -> None:
    catalogue = Catalogue()
    served(catalogue)
    served(catalogue, "c2", "f:4", "old")
    for _ in range(2):
        refused = catalogue.offered("c9", offer(code="def"))
        assert refused is not None
        assert (refused.ok, refused.code) == (False, "version_exists")
        assert "5" in refused.message  # the next free number
        catalogue.withdrawn("c1")
        catalogue.withdrawn("c2")
    again = Catalogue({"f": reopened(catalogue.models["f"])})
    refused = again.offered("c9", offer(code="def"))
    assert refused is not None
    assert refused.code == "version_exists"
    assert again.offered("c3", offer()) is None  # its own code is accepted again


def test_a_replica_of_the_same_code_with_other_options_is_refused_while_others_serve() -> None:
    catalogue = Catalogue()
    served(catalogue)
    other = msgspec.structs.replace(offer(), spec=msgspec.structs.replace(offer().spec, batch_max=4))
    refused = catalogue.offered("c2", other)
    assert refused is not None
    assert refused.code == ReplyCode.REPLICAS_DIFFER
    catalogue.withdrawn("c1")
    assert catalogue.offered("c2", other) is None


def test_a_new_version_takes_over_and_a_known_one_that_comes_back_does_not() -> None:
    catalogue = Catalogue()
    served(catalogue)
    served(catalogue, "c2", "f:2")
    catalogue.withdrawn("c1")
    assert catalogue.offered("c3", offer("f:1")) is None
    assert catalogue.models["f"].target is None
    assert catalogue.rollback(("o", 1), "f") == []  # it waits for the controller
    assert catalogue.models["f"].target == "1"


def test_rollback_and_deploy_need_a_container_that_runs() -> None:
    catalogue = Catalogue()
    served(catalogue)
    served(catalogue, "c2", "f:2")
    catalogue.withdrawn("c1")
    ((_, reply),) = catalogue.rollback(("o", 1), "f")
    assert reply.code == ReplyCode.NO_REPLICA
    assert names(reply.message, "'f'", 1)
    catalogue.withdrawn("c2")
    ((_, reply),) = catalogue.deploy(("o", 2), "f", None, {})
    assert reply.code == ReplyCode.NO_REPLICA
    assert names(reply.message, "'f'")


def test_a_package_and_a_container_cannot_share_a_name() -> None:
    catalogue = Catalogue()
    catalogue.scan({"m": ["1"]})
    refused = catalogue.offered("c1", offer("m:1"))
    assert refused is not None
    assert (refused.ok, refused.field, refused.code) == (False, "name", PackageCode.NAME_TAKEN)
    served(catalogue)
    catalogue.scan({"f": ["7"]})
    assert catalogue.models["f"].versions == ["1"]
