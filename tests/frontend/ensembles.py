"""A real frontend beside a real broker, and applications over models of one kind; a test says what models answer."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np

from frontend.client.client import Prediction
from mesh import wire
from tests.frontend.service_mesh import QUICK, SPEC, Mesh
from tests.mesh.net.brokers import package
from tests.mesh.net.processes import processes

MODELS = ["m", "a", "b"]
DEFAULT = {"y": np.full((1, 4), 0.25, np.float32)}


def scores(*classes: int) -> bytes:
    """One row for each class that is said."""
    return bytes((np.eye(4, dtype=np.float32)[list(classes)] * 9).tobytes())


class Ensemble(Mesh):
    """As Mesh, with three models of one kind, and `odd`, which gives something else."""

    def __init__(self, made: Any, folder: Path, **settings: Any) -> None:
        for name in ("a", "b", "odd"):
            package(folder / "repository", name, "1")
        super().__init__(made, folder, data_dir=folder / "state", **settings)

    async def begin(self) -> None:
        await super().begin()
        odd = wire.TensorSpec(name="y", dtype="float32", shape=(-1, 5))
        for name in ("a", "b"):
            self.controller.report(f"{name}:1")
        spec = wire.ModelSpec(inputs=SPEC.inputs, outputs=(odd,), batch_max=8, slo_ms=60_000.0)
        self.controller.caller.link.send(wire.PrepareReport(ref="odd:1", ok=True, spec=spec))
        while sum(bool(model["inputs"]) for model in await self.client.models()) < 4:
            pass

    def ready(self) -> bool:
        """One model can be asked, and that is enough to begin with: nobody else is prepared yet."""
        return True

    async def in_flight(self, number: int) -> None:
        """Returns once so many requests are."""
        while (await self.client.call("status"))["in_flight"] != number:
            pass

    async def asked(self, number: int) -> dict[str, wire.Submit]:
        """{model: what it was last asked}, once so many were asked in all."""
        return {submit.ref.split(":")[0]: submit for submit in await self.controller.wait(wire.Submit, number)}

    def say(self, submit: wire.Submit, *classes: int, data: bytes | None = None) -> None:
        """The worker answers that these are the classes."""
        inline = (memoryview(data if data is not None else scores(*classes)),)
        self.outputs(
            wire.Answer(
                request=submit.request, attempt=submit.attempt, rows=submit.rows, predicted_s=0.1, inline=inline
            )
        )


@contextlib.asynccontextmanager
async def ensemble(folder: Path, policy: str = "majority", **app: Any) -> AsyncIterator[Ensemble]:
    settings = app.pop("settings", {})
    async with processes(**{**QUICK, **settings}) as made:
        begun = Ensemble(made, folder, **settings)
        try:
            await begun.begin()
            if policy:
                await begun.client.create_app("app", app.pop("models", MODELS), policy, **{"slo_ms": 60_000, **app})
            yield begun
        finally:
            begun.close()


async def outcome(future: "asyncio.Future[Any]") -> Prediction:
    found = await future
    assert isinstance(found, Prediction), found
    return found
