"""A version is its content, in the catalogue: whose number it is, what is taken down, what is not served and why."""

from typing import Any

from broker.core.catalogue import Catalogue, Replies
from mesh import wire
from tests.broker.core.catalogues import ANN, BEN, FOUND, SPEC, broken, offer, prepared, reopened, served, state, told

# -- which version a container is -------------------------------------------------------------------------------------


def claimed(catalogue: Any, content: str, version: str | None = None, name: str = "f") -> str:
    """The version that the code may be; or the code of the refusal."""
    reply = catalogue.claim(7, name, content, version)
    catalogue.check()
    assert reply.call == 7
    return reply.version if reply.ok else reply.code


def test_code_gets_the_next_number_and_the_same_code_its_own() -> None:
    catalogue = Catalogue()
    assert claimed(catalogue, "a") == "1"
    assert claimed(catalogue, "b") == "2"
    assert claimed(catalogue, "a") == "1"
    again = Catalogue({"f": reopened(catalogue.models["f"])})
    assert [claimed(again, content) for content in "bac"] == ["2", "1", "3"]


def test_a_version_that_is_asked_for_is_given_to_its_own_code_alone() -> None:
    catalogue = Catalogue()
    assert claimed(catalogue, "a", "7") == "7"
    assert claimed(catalogue, "a", "7") == "7"
    assert claimed(catalogue, "b", "7") == "version_exists"
    assert claimed(catalogue, "b") == "8"
    assert claimed(catalogue, "a", "9") == "9"  # one code under two numbers
    assert claimed(catalogue, "a") == "9"


def test_of_several_numbers_code_comes_back_under_the_current_one() -> None:
    catalogue = Catalogue()
    served(catalogue, code="a")
    assert claimed(catalogue, "a", "2") == "2"
    assert claimed(catalogue, "a") == "1"


def test_what_was_claimed_and_never_came_is_not_deployed() -> None:
    catalogue = Catalogue()
    assert claimed(catalogue, "a") == "1"
    assert catalogue.entries({}) == ()
    assert catalogue.offered("c1", offer("f:1", "a")) is None
    assert [(entry.name, entry.target) for entry in catalogue.entries({})] == [("f", "1")]


def test_a_claimed_version_that_comes_takes_over() -> None:
    catalogue = Catalogue()
    served(catalogue, code="a")
    assert claimed(catalogue, "b") == "2"
    served(catalogue, "c2", "f:2", "b")


def test_a_package_s_name_and_wrong_names_and_numbers_are_not_given() -> None:
    catalogue = Catalogue()
    catalogue.scan({"m": ["1"]})
    before = reopened(catalogue.models["m"])
    for name, version in (("m", None), ("a b", None), ("f", "one")):
        reply = catalogue.claim(7, name, "a", version)
        assert not reply.ok
        assert reply.field
    assert catalogue.models == {"m": before}


# -- a version is its content -----------------------------------------------------------------------------------------


def brought(ref: str, content: str, *, ready: bool = True, tries: int = 0) -> wire.PrepareReport:
    return wire.PrepareReport(ref=ref, ok=True, spec=SPEC, content=content, ready=ready, tries=tries)


def entry(catalogue: Any, name: str = "m") -> wire.ModelEntry:
    (found,) = [entry for entry in catalogue.entries({}) if entry.name == name]
    return found  # type: ignore[no-any-return]


def refused(replies: Replies) -> tuple[bool, str]:
    ((_, reply),) = replies
    return reply.ok, reply.code


def test_a_new_version_s_content_is_in_the_table_before_the_version_is_current(serving: Any) -> None:
    serving.deploy(ANN, "m", "2", FOUND)
    assert serving.reported(brought("m:2", "A", ready=False)) == []
    assert (entry(serving).current, entry(serving).contents) == ("1", {"2": "A"})
    assert serving.reported(brought("m:2", "A")) == told(ANN, True, "m:2 is current")
    assert (entry(serving).current, entry(serving).contents) == ("2", {"2": "A"})


def test_the_first_content_of_a_version_is_the_only_one(serving: Any) -> None:
    serving.deploy(ANN, "m", "2", FOUND)
    serving.reported(brought("m:2", "A", ready=False))
    assert serving.differs(brought("m:2", "B"))
    assert refused(serving.reported(brought("m:2", "B"))) == (False, "content_changed")
    assert state(serving)[:2] == ("1", None)
    assert (entry(serving).fault_code, entry(serving).unserved) == ("content_changed", False)


def test_what_was_prepared_and_never_served_binds_nobody(serving: Any) -> None:
    serving.deploy(ANN, "m", "2", FOUND)
    serving.reported(brought("m:2", "A", ready=False))
    serving.reported(broken("m:2", "its worker died"))
    serving.deploy(ANN, "m", "2", FOUND)
    assert serving.reported(brought("m:2", "B")) == told(ANN, True, "m:2 is current")
    assert entry(serving).contents == {"2": "B"}


def test_an_earlier_version_with_other_files_does_not_come_back(serving: Any) -> None:
    serving.reported(brought("m:1", "A"))
    serving.deploy(ANN, "m", "2", FOUND)
    serving.reported(brought("m:2", "B"))
    serving.rollback(BEN, "m")
    assert entry(serving).contents == {"1": "A", "2": "B"}
    assert refused(serving.reported(brought("m:1", "C"))) == (False, "content_changed")
    assert state(serving) == ("2", None, ["1"])
    serving.rollback(BEN, "m")
    assert serving.reported(brought("m:1", "A")) == told(BEN, True, "m:1 is current")


def test_a_current_version_of_an_older_catalogue_gets_its_content_from_the_first_that_has_it(serving: Any) -> None:
    assert entry(serving).contents == {}
    serving.reported(brought("m:1", "A", ready=False))
    assert entry(serving).contents == {"1": "A"}
    again = Catalogue({"m": reopened(serving.models["m"])})
    assert again.differs(brought("m:1", "B"))
    assert not again.differs(brought("m:1", ""))  # of a device that reads no weights


def test_a_report_without_a_content_fixes_none(serving: Any) -> None:
    serving.deploy(ANN, "m", "2", FOUND)
    serving.reported(prepared("m:2"))
    assert entry(serving).contents == {}
    assert not serving.differs(brought("m:2", "A"))


# -- a current version that cannot be served --------------------------------------------------------------------------


def changed(ref: str, tries: int = 0) -> wire.PrepareReport:
    return wire.PrepareReport(ref=ref, ok=False, faults=("other files",), code="content_changed", tries=tries)


def test_a_current_version_that_no_device_can_prepare_says_why_until_one_can(serving: Any) -> None:
    assert serving.reported(changed("m:1")) == []
    seen = entry(serving)
    assert (seen.current, seen.fault, seen.fault_code, seen.unserved) == ("1", "other files", "content_changed", True)
    assert reopened(serving.models["m"]) == serving.models["m"]
    serving.reported(prepared("m:1"))
    seen = entry(serving)
    assert (seen.current, seen.fault, seen.fault_code, seen.unserved) == ("1", "", "", False)


def test_the_fault_of_a_deployment_stays_when_the_current_version_is_served_again(serving: Any) -> None:
    serving.deploy(ANN, "m", "2", FOUND)
    serving.reported(broken("m:2", "no graph"))
    serving.reported(changed("m:1"))
    serving.reported(prepared("m:1"))
    assert entry(serving).fault == "no graph"


def test_the_current_version_deployed_again_is_tried_again_and_the_outcome_told(serving: Any) -> None:
    serving.reported(changed("m:1"))
    tries = entry(serving).tries
    assert serving.deploy(ANN, "m", "1", FOUND) == []
    assert entry(serving).tries == tries + 1
    assert refused(serving.reported(changed("m:1", tries + 1))) == (False, "content_changed")
    assert serving.deploy(ANN, "m", "1", FOUND) == []
    ((key, reply),) = serving.reported(brought("m:1", "A", tries=tries + 2))
    assert (key, reply.ok) == (ANN, True)
    assert serving.deploy(ANN, "m", "1", FOUND) == told(ANN, True, "m:1 is current already")


def test_word_of_an_earlier_try_does_not_answer_a_later_one(serving: Any) -> None:
    serving.deploy(ANN, "m", "2", FOUND)
    before = entry(serving).tries
    serving.reported(changed("m:2", before))
    serving.deploy(BEN, "m", "2", FOUND)
    assert serving.reported(changed("m:2", before)) == []
    assert serving.reported(brought("m:2", "A", tries=before + 1)) == told(BEN, True, "m:2 is current")


def test_who_waits_for_the_current_version_is_answered_when_it_is_not_current_any_more(serving: Any) -> None:
    serving.reported(changed("m:1"))
    serving.deploy(ANN, "m", "1", FOUND)
    serving.deploy(BEN, "m", "2", FOUND)
    first, second = serving.reported(prepared("m:2"))
    assert {first[0]: first[1].ok, second[0]: second[1].ok} == {ANN: False, BEN: True}
    serving.reported(changed("m:2"))
    serving.deploy(ANN, "m", "2", FOUND)
    first, second = serving.undeploy(BEN, "m")
    assert {first[0]: first[1].ok, second[0]: second[1].ok} == {ANN: False, BEN: True}
    assert not serving.models["m"].unserved


def test_a_container_that_died_is_not_a_fault_of_its_version() -> None:
    catalogue = Catalogue()
    served(catalogue)
    assert catalogue.reported(broken("f:1", "it died")) == []
    assert not entry(catalogue, "f").unserved
