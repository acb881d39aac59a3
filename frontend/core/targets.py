"""Which version of a model a client's request is bound to, or why it is bound to none. Pure."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from frontend.core import checks, protocol
from frontend.core.answer_forms import AnswerForm
from frontend.core.checks import InputRules
from frontend.core.output_rules import OutputRules, rules_of
from frontend.core.protocol import RequestRefused
from mesh import wire
from mesh.codes import AnswerStatus, ErrorCode
from mesh.names import listed


@dataclass(frozen=True, slots=True)
class BoundVersion:
    """The version that requests for a model are bound to."""

    version: str
    ref: str
    spec: wire.ModelSpec
    rules: InputRules
    outputs: OutputRules | None  # None: their shapes are those of the spec
    form: AnswerForm | None  # of the answers then


class Targets:
    """The models of the last routing table."""

    def __init__(self, rows_max: int) -> None:
        self._rows_max = rows_max  # of one request
        self.models: dict[str, wire.ModelEntry] = {}  # {name: entry} of all models
        self.bound: dict[str, BoundVersion] = {}  # {name: target} of models that can be asked

    def table_changed(self, models: Iterable[wire.ModelEntry]) -> None:
        """Binds requests by this table from now on."""
        self.models = {entry.name: entry for entry in models}
        self.bound = {
            entry.name: self._bind(entry.name, entry.current, entry.spec)
            for entry in self.models.values()
            if entry.current is not None and entry.spec is not None
        }

    def _bind(self, name: str, version: str, spec: wire.ModelSpec) -> BoundVersion:
        ref, outputs = wire.ref_of(name, version), rules_of(spec)
        form = AnswerForm(ref, spec) if outputs is None else None
        return BoundVersion(version, ref, spec, InputRules(spec, self._rows_max), outputs, form)

    def of(self, request: protocol.InferRequest) -> BoundVersion:
        """The target of a request for a model. Raises: RequestRefused."""
        target = self.bound.get(request.model or "")
        if target is None or request.version not in (None, target.version) or request.context is not None:
            raise self._refusal(request)
        return target

    def current(self, ref: str, spec: wire.ModelSpec) -> bool:
        """Whether requests are still bound to this version, in the same build."""
        target = self.bound.get(wire.split_ref(ref)[0])
        if target is not None and target.spec is spec and target.ref == ref:
            return True
        return target is not None and target.spec.edition(target.ref) == spec.edition(ref)

    def editions(self) -> Iterator[str]:
        """The editions of all targets."""
        return (target.spec.edition(target.ref) for target in self.bound.values())

    def _refusal(self, request: protocol.InferRequest) -> RequestRefused:
        """Why the request has no target."""
        checks.check_names(request)
        if request.context is not None:
            text = "context goes with app: only applications learn"
            return RequestRefused(ErrorCode.BAD_TARGET, text, "context", request.id)
        entry = self.models.get(str(request.model))
        if entry is None:
            text = f"there is no model {request.model!r}; there are: {listed(self.models)}"
            return RequestRefused(ErrorCode.UNKNOWN_MODEL, text, "model", request.id)
        if entry.current is None or entry.spec is None:
            why = f": {entry.fault}" if entry.fault else ", it is still being prepared"
            text = f"model {entry.name!r} has no version that can be served{why}"
            retry_ms = None if entry.fault and entry.target is None else 1000.0
            return RequestRefused(ErrorCode.NOT_READY, text, "model", request.id, AnswerStatus.REJECTED, retry_ms)
        text = f"version {request.version!r} of {entry.name!r} is not deployed; deployed is {entry.current!r}"
        return RequestRefused(ErrorCode.UNKNOWN_VERSION, text, "version", request.id)
