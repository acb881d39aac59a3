"""Responses of the gateway, as aiohttp sends them."""

from http import HTTPStatus
from typing import Any

import msgspec
from aiohttp import web

from frontend.gateway.errors import ErrorAnswer
from frontend.gateway.inference import Question


def json_response(body: Any) -> web.Response:
    """The body as JSON."""
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")


def error_response(answer: ErrorAnswer, question: Question | None = None) -> web.Response:
    """The error as JSON, with the id of the question that it answers."""
    body = answer.body if question is None or question.id is None else {**answer.body, "id": question.id}
    headers = {"Server": "gearmesh", **answer.headers}
    return web.Response(
        body=msgspec.json.encode(body), status=answer.status, headers=headers, content_type="application/json"
    )


def sentence(request: web.Request, error: web.HTTPException) -> str:
    """What aiohttp found wrong with the request, in a sentence for its client."""
    if error.status == HTTPStatus.NOT_FOUND:
        return f"there is no path {request.path[:128]!r}; docs/http.md lists those there are"
    if error.status == HTTPStatus.METHOD_NOT_ALLOWED:
        return f"{request.path[:128]!r} is not asked with {request.method[:16]}, but {error.headers.get('Allow', '')}"
    return error.reason
