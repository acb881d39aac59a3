"""The gateway's shell: aiohttp on one side, the public ZeroMQ protocol on the other."""

import importlib.metadata
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import structlog
from aiohttp import web

from frontend.admin.metrics import CONTENT_TYPE, HttpCounts
from frontend.admin.observer import NoMesh, describe
from frontend.client.client import RequestError
from frontend.core.askers import source_of
from frontend.gateway import descriptions
from frontend.gateway.admission import Gate, budget_of, check_origin, json_length
from frontend.gateway.connection import HttpClients, HttpConnection
from frontend.gateway.errors import HttpRefusal, error_answer, plain_error, refusal
from frontend.gateway.inference import read_question, respond, rows_asked, version_asked
from frontend.gateway.pool import Pool
from frontend.gateway.requests import Bodies, PathTargets
from frontend.gateway.responses import error_response, json_response, sentence
from frontend.gateway.watch import MeshWatch
from mesh import wire
from mesh.codes import ErrorCode, HttpCode, http_of_reply
from mesh.names import VERSION
from mesh.process import logs
from mesh.process.settings import Settings

JSON_LENGTH = "Inference-Header-Content-Length"
SLO_HEADER = "X-Gearmesh-Slo-Ms"
HELD_BODIES = 4  # bodies of the largest size that all requests together may hold
PAGE_RULES = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
PATH_SHOWN = 128  # characters, in the log
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
log = structlog.get_logger("gateway")


class Gateway:
    """One HTTP port. `application` is what aiohttp serves."""

    def __init__(self, settings: Settings, pool: Pool, watch: MeshWatch) -> None:
        self._pool = pool
        self._watch = watch
        size_max = settings.request_bytes_max
        self.gate = Gate(settings.in_flight_max, size_max, HELD_BODIES * size_max)
        self.clients = HttpClients()
        self._bodies = Bodies(self.gate)
        self._targets = PathTargets(pool)
        self._statistics = descriptions.ModelStatistics()
        self._responses: dict[int, int] = {}  # {HTTP status: answers}
        self._version = importlib.metadata.version("gearmesh")
        self._page = (Path(__file__).parent / "dashboard.html").read_bytes()
        self._started_s = time.monotonic()
        self.draining = False

    def application(self) -> web.Application:
        """The aiohttp application with all paths."""
        app = web.Application(middlewares=[self._middleware])
        add = app.router.add_route
        for path, handler in {
            "/": self._dashboard,
            "/status.json": self._status,
            "/metrics": self._metrics,
            "/v2": self._server,
            "/v2/": self._server,
            "/v2/health/live": self._live,
            "/v2/health/ready": self._ready,
            "/v2/models": self._models,
            "/v2/models/stats": self._stats,
            "/v2/repository/index": self._index,
            "/v2/applications": self._applications,
        }.items():
            app.router.add_get(path, handler)  # also serves HEAD
        add("POST", "/v2/repository/index", self._index)
        add("POST", "/v2/repository/models/{name}/load", self._load)
        add("POST", "/v2/repository/models/{name}/unload", self._unload)
        add("POST", "/v2/feedback", self._feedback)
        for base in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}", "/v2/applications/{name}"):
            app.router.add_get(base, self._metadata)
            app.router.add_get(f"{base}/ready", self._model_ready)
            app.router.add_get(f"{base}/stats", self._stats)
            add("POST", f"{base}/infer", self._infer, expect_handler=self._bodies.expected)
        return app

    # -- every answer -------------------------------------------------------------------------------------------------

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Turns every outcome and every error into one response with a body."""
        try:
            if request.method == "POST":
                check_origin(request.headers)
            response = await handler(request)
        except HttpRefusal as refused:
            response = error_response(refusal(refused))
        except RequestError as error:
            response = error_response(error_answer(error))
        except web.HTTPException as error:
            response = error_response(plain_error(error.status, sentence(request, error)))
            if "Allow" in error.headers:
                response.headers["Allow"] = error.headers["Allow"]
        except Exception:
            log.exception("gateway_error", method=request.method, path=request.path[:PATH_SHOWN])
            response = error_response(plain_error(500, "the gateway itself failed; its log says how"))
        connection = request.protocol
        assert isinstance(connection, HttpConnection)
        connection.settle()
        if self.draining or connection.broken:
            response.force_close()
        response.headers["Server"] = "gearmesh"
        self._responses[response.status] = self._responses.get(response.status, 0) + 1
        log.debug("answered", method=request.method, path=request.path[:PATH_SHOWN], status=response.status)
        return response

    # -- inference ----------------------------------------------------------------------------------------------------

    async def _infer(self, request: web.Request) -> web.Response:
        with self.gate.admitted() as admitted:
            return await self._ask(request, await self._bodies.whole(request, admitted))

    async def _ask(self, request: web.Request, body: bytearray) -> web.Response:
        length = json_length(request.headers.get(JSON_LENGTH))
        slo_ms = budget_of(request.headers.get(SLO_HEADER))
        kind, described = await self._targets.named(request)
        name = described["name"]
        if described.get("starting") and not described["inputs"]:  # what it takes is not known yet
            raise HttpRefusal(described["fault"], ErrorCode.NOT_READY, "model", retry_after_ms=1000.0)
        question = read_question(body, length, described, slo_ms)
        version = version_asked(question, name, request.match_info.get("version"))
        if question.tensor_bytes > self.gate.body_bytes_max:
            raise self.gate.too_large(question.tensor_bytes)
        source = source_of(request.remote or "", request.headers.get("X-Forwarded-For", ""))
        options = {**question.options, "source": source}
        if question.id is not None:
            options["asked_id"] = str(question.id)[: wire.ASKED_ID_MAX]
        if version is not None:
            options["version"] = version
        asked_ms = question.slo_ms if question.slo_ms is not None else described.get("slo_ms")
        with self._pool.picked() as client:
            if kind == "models":
                outcome = await client.submit(name, question.inputs, slo_ms=asked_ms, **options)
            else:
                outcome = await client.submit(None, question.inputs, app=name, slo_ms=asked_ms, **options)
        if isinstance(outcome, RequestError):
            self._count_failure(name, version, described.get("version") or "", outcome)
            return error_response(error_answer(outcome), question)
        rows = rows_asked(question, described)
        self._statistics.succeeded(name, outcome.answer, rows, int(time.time() * 1e3))
        told = respond(question, outcome, name)
        if told.json_bytes is None:
            return web.Response(body=told.parts[0], content_type="application/json")
        headers = {JSON_LENGTH: str(told.json_bytes)}
        return web.Response(body=b"".join(told.parts), headers=headers, content_type="application/octet-stream")

    def _count_failure(self, name: str, asked: str | None, current: str, error: RequestError) -> None:
        if asked in (None, current):  # else a version that nobody deployed
            now_ms = int(time.time() * 1e3)
            self._statistics.failed(name, current, error.status, error.latency_ms or 0.0, now_ms)

    # -- health and descriptions --------------------------------------------------------------------------------------

    async def _live(self, request: web.Request) -> web.Response:
        return json_response({"live": True})

    async def _ready(self, request: web.Request) -> web.Response:
        if self.draining:
            raise HttpRefusal("the gateway is being stopped", ErrorCode.STOPPING, retry_after_ms=1000.0)
        why = descriptions.why_not_ready(await self._pool.call("status"))
        if why is not None:
            raise HttpRefusal(why, ErrorCode.NOT_READY, retry_after_ms=1000.0)
        return json_response({"ready": True})

    async def _server(self, request: web.Request) -> web.Response:
        return json_response(descriptions.server_metadata(self._version))

    async def _models(self, request: web.Request) -> web.Response:
        models = await self._pool.all("models")
        return json_response({"models": [descriptions.model_metadata(model) for model in models.values()]})

    async def _applications(self, request: web.Request) -> web.Response:
        answer = await self._pool.call("apps", **_context(request))
        return json_response({"applications": [descriptions.application_metadata(app) for app in answer["apps"]]})

    async def _metadata(self, request: web.Request) -> web.Response:
        kind, described = await self._targets.fresh(request)
        if kind == "models":
            return json_response(descriptions.model_metadata(described))
        return json_response(descriptions.application_metadata(described))

    async def _model_ready(self, request: web.Request) -> web.Response:
        kind, described = await self._targets.fresh(request)
        if kind == "models" and not descriptions.model_ready(described, request.match_info.get("version")):
            why = described["fault"] or described.get("unserved") or descriptions.NOBODY
            passes = described["preparing"] or described.get("unserved") or described.get("starting")
            never = described["fault"] and not passes
            raise HttpRefusal(
                f"{described['name']} would not be served: {why}",
                ErrorCode.NOT_READY,
                retry_after_ms=None if never else 1000.0,
            )
        return json_response({"name": described["name"], "ready": True})

    async def _stats(self, request: web.Request) -> web.Response:
        self._statistics.keep_only(await self._pool.targets())
        if "name" not in request.match_info:
            return json_response(self._statistics.as_json())
        _, described = await self._targets.fresh(request)
        return json_response(self._statistics.as_json(described["name"], request.match_info.get("version")))

    # -- for operators ------------------------------------------------------------------------------------------------

    async def _index(self, request: web.Request) -> web.Response:
        asked = await self._bodies.map_in(request) if request.can_read_body else {}
        models = await self._pool.all("models")
        return json_response(descriptions.repository_index(models.values(), ready_only=asked.get("ready") is True))

    async def _load(self, request: web.Request) -> web.Response:
        return await self._operate(request, deploy=True)

    async def _unload(self, request: web.Request) -> web.Response:
        return await self._operate(request, deploy=False)

    async def _operate(self, request: web.Request, *, deploy: bool) -> web.Response:
        asked = await self._bodies.map_in(request) if request.can_read_body else {}
        parameters = asked.get("parameters") or {}
        version = parameters.get("version") if isinstance(parameters, dict) and deploy else None
        if version is not None and not (isinstance(version, str) and VERSION.fullmatch(version)):
            raise HttpRefusal("parameters.version is a string of digits", ErrorCode.BAD_FIELD, "parameters.version")
        name = request.match_info["name"]
        reply = await self._watch.operate(name, version, deploy=deploy)
        if reply.ok:
            await self._pool.await_change(name, deployed=deploy)
            return json_response({"message": reply.message})
        text = reply.message + "".join(f"; {fault}" for fault in reply.faults)
        raise HttpRefusal(text, reply.code or HttpCode.NOT_LOADED, reply.field or None, http=http_of_reply(reply.code))

    async def _feedback(self, request: web.Request) -> web.Response:
        answer = dict(await self._pool.call("feedback", **_feedback_fields(await self._bodies.map_in(request))))
        answer.pop("id", None)
        answer.pop("status", None)
        return json_response(answer)

    # -- for people and Prometheus ------------------------------------------------------------------------------------

    async def _dashboard(self, request: web.Request) -> web.Response:
        headers = {"Content-Security-Policy": PAGE_RULES, "Cache-Control": "no-cache"}
        return web.Response(body=self._page, content_type="text/html", charset="utf-8", headers=headers)

    async def _status(self, request: web.Request) -> web.Response:
        models = await self._pool.recent("models")
        try:
            view = await self._watch.look()
        except NoMesh as error:
            raise HttpRefusal(str(error), HttpCode.NO_FRONTEND, retry_after_ms=1000.0) from error
        described = describe(view)
        for controller in described["controllers"].values():
            del controller["records"], controller["bounds"]  # for /metrics
        told = {
            **described,
            "at_s": view.at_s,
            "models": descriptions.dashboard_models(models.values()),
            "models_total": len(models),
            "gateway": {
                "version": self._version,
                "uptime_s": time.monotonic() - self._started_s,
                "in_flight": self.gate.requests,
                "connections": self.clients.count,
                "accept_failed": self.clients.shortage.refused,
                "lines": logs.counts()._asdict(),
                "responses": {str(status): count for status, count in sorted(self._responses.items())},
                "frontends": self._pool.addresses,
            },
        }
        return json_response(told)

    async def _metrics(self, request: web.Request) -> web.Response:
        refused, lines = self.clients.shortage.refused, logs.counts()
        counts = HttpCounts(self._responses, self.gate.requests, refused, lines.folded, lines.dropped)
        text = await self._watch.metrics(counts)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE})


def _context(request: web.Request) -> dict[str, str]:
    context = request.query.get("context")
    return {} if context is None else {"context": context}


def _feedback_fields(asked: Mapping[str, Any]) -> dict[str, Any]:
    known = ("decision_id", "label", "loss", "context")
    unknown = [name for name in asked if name not in known]
    if unknown:
        text = f"{unknown[0][:64]}: there is no such field; there are: {', '.join(known)}"
        raise HttpRefusal(text, ErrorCode.BAD_FIELD, unknown[0][:64])
    if not isinstance(asked.get("decision_id"), str):
        raise HttpRefusal(
            "decision_id is the string that an application's answer had", ErrorCode.BAD_FIELD, "decision_id"
        )
    return {name: value for name, value in asked.items() if value is not None}
