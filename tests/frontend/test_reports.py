"""frontend/reports.py: the answer to `models`."""

import pytest

from frontend.reports import describe_models
from mesh import wire
from tests.frontend.test_controllers import NOBODY, links, table
from tests.loops import on_loop
from tests.mesh.net.processes import processes


@pytest.mark.parametrize(
    ("container", "target", "gone"),
    [(True, None, True), (True, "2", False), (False, None, False)],
)
def test_a_model_whose_containers_are_gone_says_so(container: bool, target: str | None, gone: bool) -> None:
    @on_loop
    async def check() -> None:
        async with processes() as made:
            controllers, _ = links(made)
            entry = wire.ModelEntry(
                name="m", current="1", target=target, versions=("1",), owner=None, container=container
            )
            (told,) = describe_models({"m": entry}, controllers, {})
            assert (told["ready"], told["fault"] is not None) == (False, gone)

    check()


@pytest.mark.parametrize(
    ("container", "owned", "missing"),
    [(False, False, "controller"), (True, False, "controller"), (False, True, "worker"), (True, True, "container")],
)
def test_a_model_that_nobody_serves_says_who_is_missing(container: bool, owned: bool, missing: str) -> None:
    @on_loop
    async def check() -> None:
        async with processes() as made:
            controllers, _ = links(made)
            if owned:
                controllers.table_changed(table("controller-1", ("controller-1", NOBODY)))
            entry = wire.ModelEntry(
                name="m", current="1", target=None, versions=("1",), owner=None, container=container
            )
            (told,) = describe_models({"m": entry}, controllers, {})
            assert missing in told["unserved"]
            assert told["fault"] in (None, told["unserved"])
            controllers.stop()

    check()


def test_a_current_version_that_no_device_can_prepare_says_why_with_a_code() -> None:
    @on_loop
    async def check() -> None:
        async with processes() as made:
            controllers, _ = links(made)
            entry = wire.ModelEntry(
                name="m", current="1", target=None, versions=("1",), owner=None, unserved=True, fault="other files",
                fault_code="content_changed",
            )  # fmt: skip
            (told,) = describe_models({"m": entry}, controllers, {})
            assert (told["version"], told["ready"]) == ("1", False)
            assert (told["fault"], told["fault_code"]) == ("other files", "content_changed")
            assert told["unserved"] is None

    check()
