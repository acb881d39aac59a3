"""broker/core/catalogue.py: packages are deployed, rolled back and undeployed; what names may be."""

from typing import Any

import pytest

from broker.core.catalogue import HISTORY_MAX, Replies
from broker.core.records import ModelRecord
from mesh import wire
from mesh.codes import PackageCode, ReplyCode
from mesh.names import NAME, VERSION
from tests.broker.core.catalogues import ANN, BEN, FOUND, SPEC, broken, prepared, served, state, told

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
