"""The demo's application: three digits models behind one name, which learns from feedback which model to trust."""

import asyncio
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from frontend.client.async_client import AsyncClient
from frontend.client.client import Prediction, RequestError
from scripts.build_models import digits

NAME = "digits"
QUERIES = 200  # with feedback
VEIL = 10.0  # added to every pixel (0-16) by a broken camera: which model copes best is not known beforehand


async def show_application(session: AsyncClient, models: list[str], console: Console) -> bool:
    """Shows an application that meets a broken camera and learns which model to trust. Returns whether it did."""
    if len(models) < 2:
        return True
    _, images, _, labels = digits()
    veiled = (images + VEIL).astype(np.float32)
    if NAME in {app["name"] for app in await session.apps()}:
        await session.delete_app(NAME)
    await session.create_app(NAME, models, "exp4", policy_args={"eta": 0.3}, slo_ms=1000)
    await session.apps()  # tells the client what the application takes
    table = Table(
        "when", "right", *(f"weight of {model}" for model in models), "mean confidence",
        title=f"application {NAME!r}: {len(models)} models vote; the camera lays a veil over every image",
    )  # fmt: skip
    order = np.random.default_rng(1).permutation(len(images))
    held_out, taught = order[QUERIES:], order[:QUERIES]
    before = await _ask_all(session, veiled[held_out], labels[held_out])
    table.add_row("before feedback", *await _told(session, before, models))
    learned = 0
    for start in range(0, QUERIES, 50):
        part = taught[start : start + 50]
        answers = await _ask_all(session, veiled[part], labels[part])
        learned += sum(await asyncio.gather(*(_teach(session, answer, truth) for answer, truth in answers)))
        table.add_row(f"after {start + len(part)} labels", *await _told(session, answers, models))
    after = await _ask_all(session, veiled[held_out], labels[held_out])
    table.add_row("the first images again", *await _told(session, after, models))
    console.print(table)
    return learned == QUERIES and _right(after) >= _right(before) - 0.02


Answers = list[tuple[Prediction | RequestError, int]]


async def _ask_all(session: AsyncClient, images: npt.NDArray[Any], labels: npt.NDArray[Any]) -> Answers:
    futures = [session.submit(app=NAME, x=image[np.newaxis], slo_ms=2000) for image in images]
    return [(answer, int(label)) for answer, label in zip(await asyncio.gather(*futures), labels, strict=True)]


async def _teach(session: AsyncClient, answer: Prediction | RequestError, truth: int) -> bool:
    if isinstance(answer, RequestError) or answer.decision_id is None:
        return False
    return bool((await session.feedback(answer.decision_id, label=truth))["applied"])


def _right(answers: Answers) -> float:
    hits = [isinstance(answer, Prediction) and int(answer.output.argmax()) == truth for answer, truth in answers]
    return sum(hits) / len(hits)


async def _told(session: AsyncClient, answers: Answers, models: list[str]) -> list[str]:
    weights = next(app["weights"] for app in await session.apps() if app["name"] == NAME)
    sure = [answer.confidence or 0.0 for answer, _ in answers if isinstance(answer, Prediction)]
    return [f"{_right(answers):.1%}", *(f"{weights[model]:.1%}" for model in models), f"{np.mean(sure or [0.0]):.2f}"]
