"""broker/core/progress.py: what a deployment waits for."""

import pytest

from broker.core.catalogue import Catalogue
from broker.core.progress import why_waits
from mesh import wire
from mesh.codes import WaitReason

OFFER = wire.Offer(ref="f:1", spec=wire.ModelSpec(inputs=(), outputs=(), batch_max=1, slo_ms=1.0), code="A")
CONTROLLER = wire.Member(id="controller-1", role="controller", host="here")
WORKER = wire.Member(id="gpu_worker-1", role="gpu_worker", host="here")
CONTAINER = wire.Member(id="gpu_worker-2", role="gpu_worker", host="here", offer=OFFER)
FRONTEND = wire.Member(id="frontend-1", role="frontend", host="here")


@pytest.mark.parametrize(
    ("members", "container", "reason"),
    [
        ([], False, WaitReason.NO_CONTROLLER),
        ([WORKER, FRONTEND], False, WaitReason.NO_CONTROLLER),
        ([CONTROLLER, FRONTEND], False, WaitReason.NO_WORKER),
        ([CONTROLLER, CONTAINER], False, WaitReason.NO_WORKER),  # which serves its own function alone
        ([CONTROLLER, WORKER], False, WaitReason.PREPARING),
        ([CONTROLLER, CONTAINER], True, WaitReason.PREPARING),
        ([CONTAINER], True, WaitReason.NO_CONTROLLER),
    ],
)
def test_a_deployment_waits_for_who_is_missing(members: list[wire.Member], container: bool, reason: WaitReason) -> None:
    found, message = why_waits("m:1", members, container=container)
    assert found == reason
    assert "m:1" in message


def test_only_calls_without_an_outcome_wait_and_each_peer_hears_of_its_own() -> None:
    catalogue = Catalogue()
    found = {"m": ["1"], "n": ["1"]}
    catalogue.scan(found)
    catalogue.deploy(("ann", 1), "m", "1", found)
    catalogue.deploy(("ann", 2), "n", "1", found)
    catalogue.deploy(("bob", 3), "n", "1", found)
    assert [waits.call for waits in catalogue.awaited("ann", [])] == [1, 2]
    catalogue.reported(wire.PrepareReport(ref="n:1", ok=False, faults=("no graph",)))
    assert [waits.call for waits in catalogue.awaited("ann", [])] == [1]
    assert catalogue.awaited("bob", []) == []
