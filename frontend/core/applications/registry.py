"""Which applications are in effect at a frontend, by the broker's table and this frontend's settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from frontend.core import checks, protocol
from frontend.core.applications.definitions import Application, Definition, fits, make_application, read_definition
from frontend.core.applications.learned import LearnedStates
from frontend.core.applications.messages import Failure, NotServed
from frontend.core.checks import InputRules
from frontend.core.protocol import RequestRefused
from mesh import wire
from mesh.codes import AnswerStatus, ErrorCode
from mesh.names import listed

RETRY_AFTER_MS = 1000.0  # a version that is being prepared is often there by then


@dataclass(frozen=True, slots=True)
class ApplicationLimits:
    """What one frontend allows its applications."""

    slo_ms_max: float  # the largest budget of a request
    rows_max: int  # of one request
    request_bytes_max: int  # the largest frame that a client may send
    selection_allow: tuple[str, ...] = ()  # prefixes of module:attr policies that may be imported


@dataclass(frozen=True, slots=True)
class Unserved:
    """An application that is defined, and cannot be in effect at this frontend."""

    definition: Mapping[str, Any]  # as the table has it
    revision: int
    code: ErrorCode
    why: str


class ApplicationRegistry:
    """The applications of the last table, and the specs of the models that they may ask."""

    def __init__(self, limits: ApplicationLimits, learned: LearnedStates) -> None:
        self._limits, self._learned = limits, learned
        self.apps: dict[str, Application] = {}  # {name: one that is in effect}
        self.unserved: dict[str, Unserved] = {}  # {name: one that is not}; together they are the table's
        self.shared = False  # there are other frontends, which may get the feedback for our answers
        self._rules: dict[str, InputRules] = {}  # {name: of the application in effect}
        self._specs: dict[str, wire.ModelSpec | None] = {}  # {model: of its current version}; None: it has none

    def table_changed(self, table: wire.Table) -> list[NotServed]:
        """Applications and models are as in the table. Returns the applications that ceased to be served."""
        self._specs = {entry.name: entry.spec for entry in table.models}
        self.shared = sum(member.role == "frontend" for member in table.members) > 1
        there = {entry.name: entry for entry in table.apps}
        for name in [name for name in (*self.apps, *self.unserved) if name not in there]:
            self.apps.pop(name, None)
            self.unserved.pop(name, None)
            self._rules.pop(name, None)
            self._learned.cache.forget(name)
        facts = [self._enter(entry) for entry in there.values()]
        return [fact for fact in facts if fact is not None]

    def _enter(self, entry: wire.AppEntry) -> NotServed | None:
        """The application is in effect as the table defines it, or unserved; a fact tells of the latter, once."""
        known = self.apps.get(entry.name)
        if known is not None and known.created != entry.created:  # it was deleted and made again
            self._learned.cache.forget(entry.name)
            known = None
        if known is not None and known.revision == entry.revision and self._specs.get(known.models[0]) == known.spec:
            return None
        try:
            app = self.make(read_definition(entry.definition), entry.revision, strict=False)
        except RequestRefused as invalid:
            before = self.unserved.get(entry.name)
            self.apps.pop(entry.name, None)
            self.unserved[entry.name] = Unserved(entry.definition, entry.revision, invalid.code, invalid.message)
            told = invalid.code == ErrorCode.NOT_READY or (before is not None and before.why == invalid.message)
            return None if told else NotServed(entry.name, invalid.message)
        app.created = entry.created
        self.unserved.pop(entry.name, None)
        if known is not None:
            app.counts = known.counts
        self.apps[entry.name] = app
        self._rules[entry.name] = InputRules(app.spec, self._limits.rows_max)
        return None

    def make(self, definition: Definition, revision: int, *, strict: bool) -> Application:
        """Returns the application by this frontend's limits and models. `strict`, Raises: as make_application."""
        limits = self._limits
        return make_application(
            definition, revision, self._specs,
            slo_ms_max=limits.slo_ms_max, allow=limits.selection_allow, strict=strict,
        )  # fmt: skip

    def find(self, request: protocol.InferRequest) -> tuple[Application, InputRules]:
        """Returns the application that is asked, and the rules for its inputs. Raises: RequestRefused."""
        app = self.apps.get(request.app or "")
        if app is None or request.version is not None or request.model is not None:
            raise self._refusal(request)
        return app, self._rules[app.name]

    def _refusal(self, request: protocol.InferRequest) -> RequestRefused:
        """Why no application can be asked. Raises: RequestRefused, if the request is at fault whatever there is."""
        checks.check_names(request)
        if request.version is not None:
            text = "version goes with model; an application has none"
            return RequestRefused(ErrorCode.BAD_TARGET, text, "version", request.id)
        unserved = self.unserved.get(request.app or "")
        if unserved is not None and unserved.code == ErrorCode.NOT_READY:
            text = f"no model of the application {request.app!r} is prepared yet"
            return RequestRefused(ErrorCode.NOT_READY, text, "app", request.id, AnswerStatus.REJECTED, RETRY_AFTER_MS)
        if unserved is not None:
            text = f"the application {request.app!r} is not served: {unserved.why}"
            return RequestRefused(ErrorCode.NOT_SERVED, text, "app", request.id, AnswerStatus.FAILED)
        text = f"there is no application {request.app!r}; there are: {listed(self.apps)}"
        return RequestRefused(ErrorCode.UNKNOWN_APP, text, "app", request.id)

    def why_not_asked(self, app: Application, model: str) -> Failure | None:
        """Returns why this model of the application cannot be asked now; None if it can."""
        spec = self._specs.get(model)
        if spec is None:
            text = f"model {model} has no version that can be served"
            return Failure(AnswerStatus.REJECTED, ErrorCode.NOT_READY, text, None, RETRY_AFTER_MS)
        if not fits(spec, app.spec):
            text = f"the version of {model} that is deployed now has other inputs or outputs"
            return Failure(AnswerStatus.FAILED, ErrorCode.MODELS_DIFFER, text)
        return None

    def check(self) -> None:
        """Raises: AssertionError unless every invariant holds."""
        assert not self.apps.keys() & self.unserved.keys()
        assert self.apps.keys() <= self._rules.keys()
        assert all(app.name == name for name, app in self.apps.items())
