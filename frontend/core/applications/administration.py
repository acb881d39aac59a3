"""Applications made, changed, deleted and listed: what the broker keeps, and what was learned."""

import itertools
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from frontend.core import protocol
from frontend.core.applications.definitions import Application, Counts, read_definition
from frontend.core.protocol import Invalid
from frontend.keeper import Drop, Read
from mesh import wire
from mesh.names import NAME
from mesh.process.settings import Settings
from selection.base import State, adapt, fresh
from selection.contexts import check_context

if TYPE_CHECKING:
    from frontend.core.applications.service import Applications, Host, Unserved

REPLY_S_MAX = 5.0
CALLS_MAX = 1000


@dataclass(frozen=True, slots=True)
class Asked:
    """One call of the broker."""

    client: Any
    id: int | str
    until_s: float
    forget: str  # the application whose learned state goes when the broker agrees; empty: none


class Administration:
    """Shell: the operator's side of the applications."""

    def __init__(self, applications: "Applications", settings: Settings, host: "Host") -> None:
        self._all, self._settings, self._host = applications, settings, host
        self._calls: dict[int, Asked] = {}  # oldest first
        self._numbers = itertools.count(1)

    def handle(self, client: Any, request: Any, now: float) -> None:
        """It is done, and then answered. Raises: Invalid."""
        try:
            if isinstance(request, protocol.Apps):
                self._list(client, request)
            elif isinstance(request, protocol.DeleteApp):
                self._delete(client, request, now)
            else:
                self._put(client, request, now, create=isinstance(request, protocol.CreateApp))
        except Invalid as invalid:
            invalid.id = request.id
            raise

    def _put(self, client: Any, request: Any, now: float, *, create: bool) -> None:
        definition = read_definition(request.app)
        exists = definition.name in self._all.apps
        if create and exists:
            text = f"application {definition.name!r} exists already; change it with update_app"
            raise Invalid("app_exists", text, "app.name")
        self._all.make(definition, 0, strict=True)
        forget = definition.name if create else ""
        call = self._call(client, request.id, now, forget)
        self._send(call, wire.PutApp(call=call, definition=_plain(request.app), create=create))

    def _delete(self, client: Any, request: protocol.DeleteApp, now: float) -> None:
        if not NAME.fullmatch(request.app):
            raise Invalid("unknown_app", f"app must match {NAME.pattern}; got {request.app[:80]!r}", "app")
        call = self._call(client, request.id, now, request.app)
        self._send(call, wire.DropApp(call=call, name=request.app))

    def _call(self, client: Any, request_id: int | str, now: float, forget: str) -> int:
        if len(self._calls) >= CALLS_MAX:
            raise Invalid("busy", "the broker has not answered so many calls yet", None, None, "rejected", 1000.0)
        call = next(self._numbers)
        self._calls[call] = Asked(client, request_id, now + REPLY_S_MAX, forget)
        return call

    def _send(self, call: int, message: wire.ToBroker) -> None:
        if not self._host.to_broker(message):
            del self._calls[call]
            text = "the broker is not there, and only it can change applications; those that are there are served"
            raise Invalid("no_broker", text, None, None, "rejected", 1000.0)

    def replied(self, reply: wire.CallReply) -> None:
        """The broker answered; what it agreed to is in effect here."""
        asked = self._calls.pop(reply.call, None)
        if asked is None:
            return
        if reply.ok:
            if asked.forget:
                self._all.states.forget(asked.forget)
                self._all.keeper.submit(Drop(asked.forget))
            answer = {"id": asked.id, "status": "ok", "message": reply.message, "revision": reply.revision}
            self._host.send(asked.client, answer)
            return
        code = "unknown_app" if "there is no application" in reply.message else "bad_app"
        if "exists already" in reply.message:
            code = "app_exists"
        self._host.refuse(asked.client, Invalid(code, reply.message, reply.field or None, asked.id))

    def expire(self, now: float) -> None:
        """Calls that the broker did not answer are."""
        for call, asked in list(self._calls.items()):
            if asked.until_s > now:
                return
            del self._calls[call]
            text = f"the broker did not answer within {REPLY_S_MAX:g} s; `apps` says what is in effect"
            self._host.refuse(asked.client, Invalid("no_broker", text, None, asked.id, "timed_out"))

    def wake_at(self) -> float | None:
        """When the next call is given up."""
        return next((asked.until_s for asked in self._calls.values()), None)

    def _list(self, client: Any, request: protocol.Apps) -> None:
        """What was learned is read from the store, once more for each application."""
        context = request.context or ""
        fault = check_context(context)
        if fault is not None:
            raise Invalid("bad_context", fault, "context")
        apps = [self._all.apps[name] for name in sorted(self._all.apps)]
        described: dict[str, dict[str, Any]] = {}

        def finish() -> None:
            if len(described) == len(apps):
                others = {name: describe_unserved(found, context) for name, found in self._all.unserved.items()}
                listed = [entry for _, entry in sorted({**others, **described}.items())]
                most = self._settings.request_bytes_max
                self._host.send(client, {"id": request.id, "status": "ok", "apps": listed, "frame_bytes_max": most})

        def read(app: Application) -> None:
            def done(state: State | None, error: str) -> None:
                known = self._all.state_of(app, context) if error else state
                described[app.name] = self._describe(app, context, known, error)
                finish()

            self._all.keeper.submit(Read((app.name, context), done))

        for app in apps:
            read(app)
        if not apps:
            finish()

    def _describe(self, app: Application, context: str, state: State | None, error: str) -> dict[str, Any]:
        known = adapt(state, app.models) if state is not None else fresh(app.models)
        shares, raised = shares_of(app, known)
        definition = app.definition
        return {
            "name": definition.name,
            "models": list(definition.models),
            "policy": definition.policy,
            "policy_args": definition.policy_args,
            "slo_ms": app.slo_ms,
            "confidence_min": definition.confidence_min,
            "default": [_tensor(spec, array) for spec, array in zip(app.spec.outputs, app.default, strict=False)]
            or None,
            "revision": app.revision,
            "inputs": [_described(spec) for spec in app.spec.inputs],
            "outputs": [_described(spec) for spec in app.spec.outputs],
            "context": context,
            "weights": {model: shares.get(model, 0.0) for model in definition.models},
            "learned": {
                model: {"feedback": arm.seen, "mean_loss": arm.lost / arm.seen if arm.seen else None}
                for model, arm in known.arms.items()
            },
            "rounds": known.rounds,
            "counts": asdict(app.counts),
            "learning": f"paused: {error}" if error else raised or "on",
        }


def describe_unserved(found: "Unserved", context: str) -> dict[str, Any]:
    """As one that is served, with what its definition has; `learning` says why it is not."""
    plain: dict[str, Any] = {
        "models": [],
        "policy": "",
        "policy_args": {},
        "slo_ms": None,
        "confidence_min": 0.0,
        "default": None,
    }
    return {
        **plain,
        **_plain(dict(found.definition)),
        "revision": found.revision,
        "inputs": [],
        "outputs": [],
        "context": context,
        "weights": {},
        "learned": {},
        "rounds": 0,
        "counts": asdict(Counts()),
        "learning": f"not served: {found.why}",
    }


def shares_of(app: Application, state: State) -> tuple[dict[str, float], str]:
    """Each model's part in the answers; none of them, and why, where a policy of the user's own does not say."""
    try:
        return {model: float(share) for model, share in app.policy.shares(state).items()}, ""
    except Exception as error:  # a policy of the user's own may raise anything
        return {}, f"the policy {app.definition.policy} raised {type(error).__name__} in shares: {error}"


def _described(tensor: wire.TensorSpec) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}


def _tensor(spec: wire.TensorSpec, array: Any) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(array.shape), "data": array.tobytes()}


def _plain(value: Any) -> Any:
    """The same, with bytes for views."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return bytes(value) if isinstance(value, memoryview) else value
