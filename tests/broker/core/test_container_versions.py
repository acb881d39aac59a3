"""broker/core/containers.py: versions that containers claim and serve."""

import msgspec

from broker.core.catalogue import Catalogue
from mesh.codes import PackageCode, ReplyCode
from tests.broker.core.catalogues import offer, reopened, served
from tests.messages import names


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
