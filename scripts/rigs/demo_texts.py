"""The quickstart's texts: of unequal length, made into numbers here, encoded in one batch, and compared."""

import asyncio
import re
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from frontend.client.async_client import AsyncClient
from frontend.client.client import Prediction, RequestError
from scripts.peers.encoder import VOCABULARY

ASKED = "the cat sleeps on the warm stove"
ALIKE = "a cat that has eaten well sleeps all day long on the stove, because it is warm there"
OTHER = "interest rates rose again in March"


def words_of(text: str) -> npt.NDArray[np.int64]:
    """[1, words]: a number for each word, which is never 0."""
    numbers = [zlib.crc32(word.encode()) % (VOCABULARY - 1) + 1 for word in re.findall(r"\w+", text.lower())]
    return np.array([numbers], np.int64)


async def show_texts(session: AsyncClient, models: Sequence[str], console: Console) -> bool:
    """Encodes three texts at once and shows how alike they are. Returns whether the answers are as expected."""
    good = True
    for model in models:
        answers = await asyncio.gather(*(_encode(session, model, text) for text in (ASKED, ALIKE, OTHER)))
        table = Table("text", "words", "alike", "latency ms", "batch", title=f"{model}: texts of unequal length")
        vectors = [np.asarray(one.output)[0] for one in answers if isinstance(one, Prediction)]
        if len(vectors) < len(answers):
            console.print(f"[red]{next(one for one in answers if isinstance(one, RequestError))}[/]")
            good = False
            continue
        likeness = [float(vector @ vectors[0]) for vector in vectors]
        for text, alike, answer in zip((ASKED, ALIKE, OTHER), likeness, answers, strict=True):
            assert isinstance(answer, Prediction)
            words = str(words_of(text).shape[1])
            table.add_row(text, words, f"{alike:.2f}", f"{answer.latency_ms:.2f}", str(answer.batch_size))
        console.print(table)
        good = good and likeness[1] > likeness[2] + 0.2
    return good


async def _encode(session: AsyncClient, model: str, text: str) -> Any:
    ids = words_of(text)
    try:
        return await session.infer(model, {"ids": ids, "mask": np.ones(ids.shape, bool)})
    except RequestError as error:
        return error
