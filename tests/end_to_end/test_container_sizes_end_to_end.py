"""Containers that take inputs of any length, and strings: real processes, clients of both protocols."""

import asyncio
import sys
from pathlib import Path

import numpy as np
import pytest

from frontend.client.async_client import AsyncClient
from gearmesh.operations.meshes import Mesh
from mesh.codes import ActionCode
from scripts import ROOT
from scripts.rigs.containers import child_pid, container
from scripts.rigs.meshes import LONG_MS
from tests.end_to_end.conftest import Shared
from tests.messages import names

pytestmark = pytest.mark.end_to_end

ENCODER = """
import numpy as np
table = np.random.default_rng(0).standard_normal((1000, 8)).astype(np.float32)

def encode(ids, mask):
    assert (ids[~mask] == 0).all()
    tokens = table[ids] * mask[..., None]
    longest = np.full(len(ids), ids.shape[1])
    return {"tokens": tokens, "sum": tokens.sum(axis=1), "longest": longest}
"""
ENCODES = (
    "--input", "ids:int64:-1,seq", "--input", "mask:bool:-1,seq", "--dim", "seq=1:512", "--output",
    "tokens:float32:-1,seq,8", "--output", "sum:float32:-1,8", "--output", "longest:int64:-1", "--no-cache",
)  # fmt: skip


def test_texts_of_unequal_length_are_encoded_together_and_each_is_what_it_is_alone(
    shared: Shared, tmp_path: Path
) -> None:
    (tmp_path / "encoder.py").write_text(ENCODER)
    rng = np.random.default_rng(5)
    texts = [rng.integers(1, 1000, (1, length)) for length in rng.integers(1, 60, 40)]

    async def scenario(running: Mesh) -> None:
        async with (
            container(running, tmp_path, "encoder:encode", *ENCODES, model="encoder"),
            AsyncClient(running.address) as client,
        ):
            alone = [await client.infer("encoder", {"ids": ids, "mask": ids > 0}, slo_ms=LONG_MS) for ids in texts]
            filled_up = 0
            while not filled_up:  # requests that come at once share batches
                asked = (client.infer("encoder", {"ids": ids, "mask": ids > 0}, slo_ms=LONG_MS) for ids in texts)
                for ids, one, other in zip(texts, await asyncio.gather(*asked), alone, strict=True):
                    assert one["tokens"].shape == (1, ids.shape[1], 8)
                    np.testing.assert_array_equal(one["tokens"], other["tokens"])
                    np.testing.assert_allclose(one["sum"], other["sum"], atol=1e-5)
                    filled_up += int(one["longest"][0]) > ids.shape[1]

    shared.play(scenario)


PIPELINE = """
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

texts = ["a good film", "what a good one", "a bad film", "bad, bad"]
model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, ["good", "good", "bad", "bad"])
"""


def test_a_pipeline_of_texts_takes_strings_and_gives_string_labels(shared: Shared, tmp_path: Path) -> None:
    (tmp_path / "sentiment.py").write_text(PIPELINE)

    async def scenario(running: Mesh) -> None:
        async with (
            container(running, tmp_path, "sentiment:model", "--start-s", "200", model="sentiment"),
            AsyncClient(running.address) as client,
        ):
            answer = await client.infer("sentiment", np.array(["good!", "so bad"], object), slo_ms=LONG_MS)
            assert answer["y"].tolist() == ["good", "bad"]
            words = ["good", "bad"] * 20
            asked = (client.infer("sentiment", np.array([word]), slo_ms=LONG_MS, cache=False) for word in words)
            assert [one["y"].item() for one in await asyncio.gather(*asked)] == words

    shared.play(scenario)


SPEAKS = """
async def speak(text):
    for word in text:
        if word == "surrogate":
            yield "\\ud800"
        elif word == "number":
            yield 7
        else:
            yield word * 2
"""
TEXTS = ("--input", "text:string:-1", "--output", "y:string:-1")


def test_strings_that_are_none_fail_their_request_alone_and_the_process_lives(shared: Shared, tmp_path: Path) -> None:
    (tmp_path / "speaks.py").write_text(SPEAKS)

    async def scenario(running: Mesh) -> None:
        async with (
            container(running, tmp_path, "speaks:speak", *TEXTS, model="speaks") as started,
            AsyncClient(running.address) as client,
        ):
            pid = child_pid(started)
            words = ["a", "surrogate", "\u00e9" * 50_000, "number", "", "\U0001f600"]
            asked = [client.submit("speaks", {"text": np.array([word])}, slo_ms=LONG_MS, cache=False) for word in words]
            for word, outcome in zip(words, await asyncio.gather(*asked), strict=True):
                if word in ("surrogate", "number"):
                    assert getattr(outcome, "code", None) == ActionCode.MODEL_ERROR, outcome
                    assert names(str(outcome), "'y'")
                else:
                    assert getattr(outcome, "status", "ok") == "ok", outcome
                    assert outcome["y"].tolist() == [word * 2]  # type: ignore[index]
            assert child_pid(started) == pid

    shared.play(scenario)


FINDS = """
import numpy as np

class Finder:
    inputs = {"image": ("float32", ("h", "w"))}
    outputs = ["boxes:float32:-1,2", "whose:int64:-1"]
    dims = {"h": (1, 64), "w": (1, 64)}
    owner = {"boxes": "whose"}

    async def predict(self, image):
        return [np.argwhere(one > 0).astype(np.float32) for one in image]
"""


def test_what_is_found_in_images_of_any_size_comes_back_to_whom_they_belong(shared: Shared, tmp_path: Path) -> None:
    (tmp_path / "finds.py").write_text(FINDS)
    rng = np.random.default_rng(6)
    images = [(rng.random((int(rng.integers(1, 4)), *rng.integers(1, 64, 2))) > 0.9).astype(np.float32)
              for _ in range(30)]  # fmt: skip

    async def scenario(running: Mesh) -> None:
        async with (
            container(running, tmp_path, "finds:Finder", "--slo-ms", "500", model="finds"),
            AsyncClient(running.address) as client,
        ):
            asked = (client.infer("finds", image, slo_ms=LONG_MS, cache=False) for image in images)
            for image, found in zip(images, await asyncio.gather(*asked), strict=True):
                expected = np.argwhere(image > 0)
                np.testing.assert_array_equal(found["whose"], expected[:, 0])
                np.testing.assert_array_equal(found["boxes"], expected[:, 1:])

    shared.play(scenario)


async def command(folder: Path, *arguments: str) -> tuple[int | None, str]:
    """Exit code and words of `gearmesh container` in that folder."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "gearmesh", "container", "--model", "m", *arguments, cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": ""}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    return process.returncode, output.decode()


WRONG = [
    (("nowhere:f",), ("'nowhere'",)),
    (("code:g",), ("'g'", "f, later")),
    (("code:number",), ("int",)),
    (("begun:begun",), ("coroutine",)),
    (("code:f", "--input", "x:float32:-1,n", "--output", "y:float32:-1", "--dim", "m=1:5"), ("--dim m", "n")),
    (("code:f", "--input", "x:strings:-1", "--output", "y:float32:-1"), ("'strings'", "string, bytes")),
    (("code:f", "--input", "x;float32"), ("--input", "x:float32:-1,64")),
    (("code:f", "--pad", "x"), ("--pad", "ids=0")),
    (("code:f", "--sample", "three.json", "--output", "a:int64:-1", "--output", "b:int64:-1"), ("a, b",)),
]


def test_every_mistake_is_told_in_words_with_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("def f(x): return x\nasync def later(x): return x\nnumber = 7\n")
    (tmp_path / "begun.py").write_text("async def later(x): return x\nbegun = later(1)\n")
    (tmp_path / "three.json").write_text("[1, 2, 3]")

    async def scenario() -> None:
        for arguments, named in WRONG:
            code, output = await command(tmp_path, "--check", "--predict", *arguments)
            assert code == 2, output
            assert "Traceback" not in output
            assert "never awaited" not in output
            assert names(output, *named), output

    asyncio.run(scenario())
