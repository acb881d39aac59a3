"""A real worker serves texts of unequal lengths over real sockets: each gets in a batch what it gets alone."""

import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from mesh import wire
from mesh.codes import ActionCode
from mesh.net.ports import Port
from mesh.roles import PortKind
from tests.gpu_worker.conftest import Repository
from tests.gpu_worker.devices.open_models import LONGEST, Made, encoder, texts
from tests.gpu_worker.test_service import World, world
from tests.gpu_worker.worker_builders import load
from tests.loops import Told, on_loop
from tests.mesh.net.processes import messages_of

DECODER: Any = msgspec.msgpack.Decoder(wire.Envelope[wire.ToResults])
FRONTENDS = ("frontend-1", "frontend-2")
REF = "encoder:1"


class Results:
    """Where a frontend takes outputs."""

    def __init__(self, at: World, name: str) -> None:
        self.mail = Told()
        port: Port[wire.ToResults, wire.FromResults] = Port(
            at.made.runtime().transport, "results", DECODER, self.mail, Told(), kind=PortKind.RESULTS, me=name
        )
        self.addresses = port.listen("127.0.0.1", 0, "GEARMESH_HOST")

    async def answers(self, count: int) -> dict[int, tuple[wire.Answer, list[Any]]]:
        """So many answers: {request: (answer, its tensors)}."""

        def found(mails: list[Any]) -> dict[int, tuple[wire.Answer, list[Any]]]:
            made: dict[int, tuple[wire.Answer, list[Any]]] = {}
            for mail in mails:
                frames = iter(mail.frames)
                for message in messages_of([mail]):
                    for answer in message.answers if isinstance(message, wire.Outputs) else ():
                        taken = [next(frames) for _ in range(answer.frames)]
                        made[answer.request] = answer, list(answer.inline) or taken
            return made

        return found(await self.mail.until(lambda mails: len(found(mails)) >= count))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return encoder(tmp_path_factory.mktemp("repository"))


async def prepared(at: World, made: Made) -> None:
    """The encoder is in the arena."""
    package, _ = made
    shutil.copytree(package.folder, at.folder / "encoder" / "1")
    at.tell(wire.Prepare(ref=REF))
    report = await at.said(wire.Prepared)
    assert report.ok, report.faults
    assert report.spec is not None
    assert report.spec.dims == package.spec.dims
    at.tell(load(900, REF))
    assert (await at.said(wire.ActionResult)).code == ActionCode.OK


@on_loop
async def test_requests_of_unequal_lengths_in_one_batch_are_answered_as_alone(
    repository: Repository, made: Made, tmp_path: Path, torch_as_it_was: None
) -> None:
    async with world(repository, tmp_path) as at:
        await prepared(at, made)
        results = {name: Results(at, name) for name in FRONTENDS}
        at.tell(wire.Frontends(results={name: taker.addresses for name, taker in results.items()}))
        torch.manual_seed(8)
        asked = texts([3, LONGEST, 1, 12])
        parts = tuple(
            wire.Part(
                frontend=FRONTENDS[i % 2], request=i, attempt=0, rows=1, predicted_s=0.1, extents=(ids.shape[1],),
                inline=(ids.numpy().tobytes(), mask.numpy().tobytes()),
            )
            for i, (ids, mask) in enumerate(asked)
        )  # fmt: skip
        at.tell(
            wire.Infer(
                action=1, ref=REF, earliest_s=0.0, latest_s=1e12, expected_s=0.001, batch=4, parts=parts,
                extents=(LONGEST,),
            )
        )  # fmt: skip
        assert (await at.said(wire.ActionResult)).code == ActionCode.OK
        package, module = made
        for i, (ids, mask) in enumerate(asked):
            answer, tensors = (await results[FRONTENDS[i % 2]].answers(2))[i]
            with torch.no_grad():
                alone = module(ids, mask)
            for spec, data, shape, wanted in zip(package.spec.outputs, tensors, answer.shapes, alone, strict=True):
                assert spec.dtype == "float32"
                got = torch.frombuffer(bytearray(data), dtype=torch.float32).reshape(shape)
                torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@on_loop
async def test_a_batch_that_is_not_what_the_model_takes_is_refused_with_the_reason_and_the_next_is_served(
    repository: Repository, made: Made, tmp_path: Path, torch_as_it_was: None
) -> None:
    async with world(repository, tmp_path) as at:
        await prepared(at, made)
        for action, extents, code in (
            (1, (LONGEST + 1,), ActionCode.BAD_INPUT),
            (2, (), ActionCode.BAD_INPUT),
            (3, (4, 4), ActionCode.BAD_INPUT),
            (4, (LONGEST,), ActionCode.OK),
        ):
            at.tell(
                wire.Infer(
                    action=action, ref=REF, earliest_s=0.0, latest_s=1e12, expected_s=0.001, batch=2, extents=extents
                )
            )
            result = await at.said(wire.ActionResult)
            assert (result.action, result.code) == (action, code)
            assert code == ActionCode.OK or f"seq from 1 to {LONGEST}" in result.message
