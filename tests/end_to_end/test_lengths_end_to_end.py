"""A mesh serves texts of unequal lengths that are asked at once: each gets what the model gives for it alone."""

from collections.abc import Iterator

import pytest
import torch

from frontend.client.client import Client
from frontend.client.conversation import RequestError
from gearmesh.operations.meshes import Mesh
from scripts.rigs.meshes import LONG_MS, background_mesh
from tests.gpu_worker.devices.open_models import LONGEST, Made, Tensors, encoder, texts

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow]
REQUESTS = 120


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Mesh, Made]]:
    """A mesh with the encoder on the processor."""
    folder = tmp_path_factory.mktemp("lengths")
    made = encoder(folder / "repository")
    with background_mesh(folder / "repository", folder / "data", {"compact": True, "device": "cpu"}) as mesh:
        yield mesh, made


def arrays(inputs: Tensors) -> dict[str, object]:
    return {name: tensor.numpy() for name, tensor in zip(("ids", "mask"), inputs, strict=True)}


def test_texts_that_are_asked_at_once_are_answered_as_each_alone(serving: tuple[Mesh, Made]) -> None:
    mesh, (_, module) = serving
    torch.manual_seed(4)
    asked = [texts([int(torch.randint(1, LONGEST + 1, ()))], 1 + i % 2)[0] for i in range(REQUESTS)]
    with Client(mesh.address) as client:
        found = client.infer_many([("encoder", arrays(inputs)) for inputs in asked], slo_ms=LONG_MS, cache=False)
    together = 0
    for inputs, answer in zip(asked, found, strict=True):
        assert not isinstance(answer, RequestError), answer
        together += answer.batch_size > len(inputs[0])
        with torch.no_grad():
            alone = module(*inputs)
        for name, wanted in zip(("text", "words"), alone, strict=True):
            got = torch.from_numpy(answer.outputs[name].copy())
            assert got.shape == wanted.shape
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert together, "batches were made of several requests"


def test_a_length_that_the_model_does_not_take_is_refused_by_name(serving: tuple[Mesh, Made]) -> None:
    mesh, _ = serving
    ((ids, mask),) = texts([LONGEST])
    with Client(mesh.address) as client:
        for inputs in ((torch.cat([ids, ids], 1), torch.cat([mask, mask], 1)), (ids, mask[:, 1:])):
            with pytest.raises(RequestError, match="seq"):
                client.infer("encoder", arrays(inputs))
