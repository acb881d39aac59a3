"""Batches whose requests differ in size, and strings: real child processes behind a worker's own lanes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpu_worker.container.specs import parse_declared, parse_tensor
from mesh.codes import ActionCode
from tests.gpu_worker.container.container_builders import Rig, rig
from tests.loops import on_loop
from tests.messages import names


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, which holds the code."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tensors(*texts: str) -> tuple[dict[str, Any], ...]:
    return tuple(parse_tensor(text, "--input") for text in texts)


def declared(inputs: list[str], outputs: list[str], **more: Any) -> dict[str, Any]:
    return {"inputs": tensors(*inputs), "outputs": tensors(*outputs), "declared": parse_declared(**more)}


def equal(one: Any, other: Any) -> None:
    """Both requests got the same outputs, of the same shapes."""
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].shape == other[name].shape
        np.testing.assert_array_equal(one[name], other[name])


async def each_as_alone(one: Rig, *requests: dict[str, Any]) -> list[dict[str, Any]]:
    """What the requests get in one batch, which is what each gets by itself."""
    together = await one.ask(*requests)
    assert isinstance(together, list), together
    for request, found in zip(requests, together, strict=True):
        alone = await one.ask(request)
        assert isinstance(alone, list), alone
        equal(alone[0], found)
    return together


def texts(rng: np.random.Generator, rows: int, length: int) -> dict[str, Any]:
    return {"ids": rng.integers(1, 1000, (rows, length)), "mask": np.ones((rows, length), bool)}


ENCODER = """
table = np.random.default_rng(0).standard_normal((1000, 8)).astype(np.float32)
seen = []
def f(ids, mask):
    seen.append(ids.shape)
    assert (ids[~mask] == 0).all()
    tokens = table[ids] * mask[..., None]
    return {'tokens': tokens, 'mean': tokens.sum(axis=1) / mask.sum(axis=1, keepdims=True).astype(np.float32)}
"""
ENCODED = declared(
    ["ids:int64:-1,seq", "mask:bool:-1,seq"], ["tokens:float32:-1,seq,8", "mean:float32:-1,8"], dims=["seq=1:512"]
)


@on_loop
async def test_requests_of_unequal_length_share_a_batch_and_each_gets_its_own_alone(folder: Path) -> None:
    rng = np.random.default_rng(1)
    async with rig(folder, ENCODER, **ENCODED) as one:
        requests = [texts(rng, rows, length) for rows, length in ((1, 3), (2, 512), (1, 1), (3, 40))]
        together = await one.ask(*requests)
        assert isinstance(together, list), together
        for request, found in zip(requests, together, strict=True):
            alone = await one.ask(request)
            assert isinstance(alone, list)
            assert found["tokens"].shape == (*request["ids"].shape, 8)
            np.testing.assert_array_equal(found["tokens"], alone[0]["tokens"])
            np.testing.assert_allclose(found["mean"], alone[0]["mean"], atol=1e-6)
        await each_as_alone(one, texts(rng, 2, 7), texts(rng, 1, 7))  # nothing is filled up


@on_loop
async def test_images_of_any_size_are_filled_up_with_the_value_that_was_named(folder: Path) -> None:
    code = "def f(image):\n    return {'lowest': image.min(axis=(1, 2)), 'image': image * 2}"
    spec = declared(
        ["image:int32:-1,h,w"], ["lowest:int32:-1", "image:int32:-1,h,w"], dims=["h=1:50", "w=2:60"], pads=["image=99"]
    )
    rng = np.random.default_rng(2)
    async with rig(folder, code, **spec) as one:
        sizes = ((1, 3, 50), (2, 40, 2), (1, 7, 7))
        found = await each_as_alone(one, *({"image": rng.integers(0, 90, size).astype(np.int32)} for size in sizes))
        assert [answer["image"].shape for answer in found] == list(sizes)


@on_loop
async def test_a_list_with_one_array_for_each_row_may_be_returned_where_rows_differ_in_size(folder: Path) -> None:
    code = "def f(ids, mask): return [np.float32(row[there]) * 2 for row, there in zip(ids, mask)]"
    spec = declared(["ids:int64:-1,seq", "mask:bool:-1,seq"], ["y:float32:-1,seq"], dims=["seq=512"])
    rng = np.random.default_rng(3)
    async with rig(folder, code, **spec) as one:
        await each_as_alone(one, texts(rng, 1, 5), texts(rng, 2, 9), texts(rng, 1, 1))


@on_loop
async def test_with_exact_sizes_an_output_may_have_an_extent_of_its_own(folder: Path) -> None:
    code = "def f(x): return np.repeat(x, 2, axis=1)[:, 1:]"
    spec = declared(["x:float32:-1,n"], ["y:float32:-1,-1"], dims=["n=1:100"], exact=True)
    async with rig(folder, code, **spec) as one:
        ones = np.ones((1, 5), np.float32)
        found = await each_as_alone(one, {"x": ones}, {"x": np.concatenate([ones * 2, ones * 3])})
        assert [answer["y"].shape for answer in found] == [(1, 9), (2, 9)]
        assert names(await one.ask({"x": ones}, {"x": ones[:, :2]}), ActionCode.BAD_INPUT)


FIND = """
def f(image):
    found = [np.argwhere(row > 0).astype(np.float32) for row in image]
    if image[0, 0, 0] < 0:
        return {'boxes': np.concatenate(found), 'whose': [i for i, row in enumerate(found) for _ in row]}
    return found
"""


def spots(rng: np.random.Generator, rows: int) -> dict[str, Any]:
    image = (rng.random((rows, 4, 4)) > 0.8).astype(np.float32)
    image[0, 0, 0] = 0
    return {"image": image}


@pytest.mark.parametrize("sign", [0, -1])
@on_loop
async def test_what_is_found_in_each_row_goes_to_whom_the_row_belongs(folder: Path, sign: int) -> None:
    spec = declared(["image:float32:-1,4,4"], ["boxes:float32:-1,2", "whose:int64:-1"], owners=["boxes=whose"])
    rng = np.random.default_rng(4)
    async with rig(folder, FIND, **spec) as one:
        requests = [spots(rng, 2), spots(rng, 1), {"image": np.zeros((1, 4, 4), np.float32)}, spots(rng, 3)]
        for request in requests:
            request["image"][0, 0, 0] = sign
        for request, found in zip(requests, await each_as_alone(one, *requests), strict=True):
            expected = np.argwhere(request["image"] > 0)
            np.testing.assert_array_equal(found["whose"], expected[:, 0])
            np.testing.assert_array_equal(found["boxes"], expected[:, 1:])


@pytest.mark.parametrize("told", [False, True])
@on_loop
async def test_of_rows_that_are_not_full_a_request_gets_as_much_as_its_fullest_has(folder: Path, told: bool) -> None:
    code = """
def f(n):
    rows = [np.arange(1, k + 1, dtype=np.float32) * np.float32(k) for k in n]
    if not TOLD:
        return rows
    full = np.full((len(n), 9), 7, np.float32)
    for row, found in zip(full, rows):
        row[:len(found)] = found
    return full, n
""".replace("TOLD", str(told))
    spec = declared(["n:int64:-1"], ["y:float32:-1,9", "found:int64:-1"], counts=["y=found"])
    async with rig(folder, code, **spec) as one:
        first, second, third = await each_as_alone(
            one, {"n": np.array([2, 0, 3])}, {"n": np.array([0])}, {"n": np.array([9, 1])}
        )
        np.testing.assert_array_equal(first["y"], [[2, 4, 0], [0, 0, 0], [3, 6, 9]])
        np.testing.assert_array_equal(first["found"], [2, 0, 3])
        assert second["y"].shape == (1, 0)
        np.testing.assert_array_equal(third["y"][1], [1] + [0] * 8)


WORDS = ["", "a", "schön", "\U0001f600" * 3, "nul\x00nul", "line\nline", "x" * 70_000]
SPEAK = """
async def f(text):
    assert text.dtype == object and not text.flags.writeable
    return {'long': [word * 2 for word in text], 'words': text[:, None], 'raw': [word.encode() for word in text]}
"""


@on_loop
async def test_strings_and_bytes_of_any_length_come_and_go(folder: Path) -> None:
    spec = declared(["text:string:-1"], ["long:string:-1", "words:string:-1,1", "raw:bytes:-1"])
    async with rig(folder, SPEAK, **spec) as one:
        requests = [{"text": np.array(words, object)} for words in (WORDS[:3], WORDS[3:4], WORDS[4:])]
        for request, found in zip(requests, await each_as_alone(one, *requests), strict=True):
            words = request["text"].tolist()
            assert found["long"].tolist() == [word * 2 for word in words]
            assert found["words"].tolist() == [[word] for word in words]
            assert found["raw"].tolist() == [word.encode() for word in words]


@on_loop
async def test_bytes_pass_as_they_are_and_words_are_filled_up_with_empty_ones(folder: Path) -> None:
    code = "def f(words): return {'y': [b'|'.join(row) for row in words], 'same': words}"
    spec = declared(["words:bytes:-1,n"], ["y:bytes:-1", "same:bytes:-1,n"], dims=["n=1:9"])
    async with rig(folder, code, **spec) as one:
        short, long = ({"words": np.array([words], object)} for words in ([b"\xff\x00"], [b"", b"a", b"bc"]))
        together = await one.ask(short, long)
        assert isinstance(together, list), together
        assert [answer["y"].tolist() for answer in together] == [[b"\xff\x00||"], [b"|a|bc"]]
        assert [answer["same"].tolist() for answer in together] == [[[b"\xff\x00"]], [[b"", b"a", b"bc"]]]


TEXT = declared(["x:int64:-1"], ["y:string:-1"])
WRONG_STRINGS = [
    ("['\\ud800'] * len(x)", ("WrongOutput", "'y'", "bytes")),
    ("[None] * len(x)", ("WrongOutput", "'y'", "NoneType", "str")),
    ("[b'a'] * len(x)", ("WrongOutput", "'y'", "bytes", "str")),
    ("x", ("WrongOutput", "'y'", "int", "str")),
    ("'one'", ("WrongOutput", "'y'", "[]")),
    ("['a', 'b']", ("WrongOutput", "'y'", "[2]", "[1]")),
    ("[['a']]", ("WrongOutput", "'y'", "[1, 1]")),
    ("[['a', 'b'], ['c']]", ("WrongOutput", "'y'")),
]


@on_loop
async def test_what_is_no_string_is_an_answer_that_says_so_and_the_process_lives(folder: Path) -> None:
    code = f"answers = {[text for text, _ in WRONG_STRINGS]!r}\ndef f(x): return eval(answers[int(x[0])])"
    async with rig(folder, code, **TEXT) as one:
        pid = one.pid
        for i, (_, named) in enumerate(WRONG_STRINGS):
            assert names(await one.ask({"x": np.array([i])}), ActionCode.MODEL_ERROR, *named)
        assert one.pid == pid


@pytest.mark.parametrize(
    ("output", "more", "code", "named"),
    [
        ("y:float32:-1,seq", {}, "x[:, :-1]", ("'y'", "[1, 3]", "[1, 4]")),
        ("y:float32:-1,seq", {}, "[x[0], x[0]]", ("'y'", "[2, 4]", "[1, 4]")),
        ("y:float32:-1,seq", {}, "[x[0, 1:]]", ("'y'", "[1, 3]", "[1, 4]")),
        ("y:int8:-1,seq", {}, "(x * 1000).astype(np.int64)", ("'y'", "int8", "int64")),
        ("y:float32:-1,2", {"owners": ["y=n"]}, "x[:, :2]", ("'y'", "'n'")),
        ("y:float32:-1,2", {"owners": ["y=n"]}, "(x[:, :2], np.array([1]))", ("'n'", 1)),
        ("y:float32:-1,2", {"owners": ["y=n"]}, "(x[:, :2], np.array([-1]))", ("'n'", -1)),
        ("y:float32:-1,2", {"owners": ["y=n"]}, "(x[:, :2], np.array([0, 0]))", ("'n'", 1)),
        ("y:float32:-1,2", {"owners": ["y=n"]}, "([x[:, :2]], np.array([0, 0]))", ("'y'", "'n'")),
        ("y:float32:-1,2", {"counts": ["y=n"]}, "(x[:, :2], np.array([3]))", ("'n'", 3)),
        ("y:float32:-1,2", {"counts": ["y=n"]}, "(x[:, :2], np.array([-1]))", ("'n'", -1)),
        ("y:float32:-1,2", {"counts": ["y=n"]}, "(x[:, :2], np.array([0.5]))", ("'n'",)),
        ("y:float32:-1,2", {"counts": ["y=n"]}, "[x[0, :3]]", ("'n'", 3, 2)),
    ],
)
@on_loop
async def test_what_cannot_be_told_apart_is_an_error_that_names_the_output(
    folder: Path, output: str, more: Any, code: str, named: Any
) -> None:
    outputs = [output] if not more else [output, "n:int64:-1"]
    spec = declared(["x:float32:-1,seq"], outputs, **more)
    async with rig(folder, f"def f(x): return {code}", **spec) as one:
        answer = await one.ask({"x": np.ones((1, 4), np.float32)})
        assert names(answer, ActionCode.MODEL_ERROR, "WrongOutput", *named), answer


@on_loop
async def test_outputs_that_have_no_room_are_an_error_and_the_next_batch_is_served(folder: Path) -> None:
    code = "def f(n): return [b'x' * int(k) for k in n]"
    async with rig(folder, code, **declared(["n:int64:-1"], ["y:bytes:-1"])) as one:
        assert names(await one.ask({"n": np.array([1 << 30])}), ActionCode.MODEL_ERROR, "'y'", "1024 MiB")
        (found,) = await each_as_alone(one, {"n": np.array([70 << 20])})  # a slot that held so much is given back
        assert len(found["y"][0]) == 70 << 20
        await each_as_alone(one, {"n": np.array([3])}, {"n": np.array([0])})


@on_loop
async def test_code_that_writes_over_what_it_described_ends_no_other(folder: Path) -> None:
    """The description of the outputs lies in memory that the code can write to, too."""
    code = """
import threading, time
from _gearmesh_child import serving
send = serving.send
def spoil(control, message):
    if message.get('op') == 'done' and spoils:
        message['described'] = spoils.pop()
    send(control, message)
serving.send = spoil
spoils = []
def f(x):
    if x[0] < 0:
        spoils.append({-1: (0, 0), -2: (0, 40), -3: (1 << 40, 8), -4: (-8, 4), -5: (0, 1 << 40)}[int(x[0])])
    return [str(n) for n in x]
"""
    async with rig(folder, code, **TEXT) as one:
        pid = one.pid
        for order in range(-5, 0):
            assert names(await one.ask({"x": np.array([order])}), ActionCode.BAD_OUTPUTS)
        (found,) = await each_as_alone(one, {"x": np.array([5, 6])})
        assert found["y"].tolist() == ["5", "6"]
        assert one.pid == pid
