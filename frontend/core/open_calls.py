"""A request of a client while it is open: a call, its parts, and all its outputs once they are there. Pure."""

from collections.abc import Hashable, Sequence
from typing import Any

from frontend.core.answer_forms import AnswerForm
from frontend.core.output_rules import OutputPart, OutputRules, Shapes
from mesh import wire
from mesh.sizes import Extents


class Call:
    """One request of one client, until it is answered."""

    __slots__ = (
        "answered", "ask", "asked_id", "asker", "client", "deadline_s", "extents", "first", "flight", "form", "framed",
        "id", "malformed", "missing", "parts", "received_s", "ref", "rows", "rules", "size", "spec", "weight",
    )  # fmt: skip

    def __init__(
        self,
        client: Hashable,
        id: int | str,
        ref: str,
        spec: wire.ModelSpec,
        rows: int,
        received_s: float,
        deadline_s: float,
        framed: bool,
        weight: float = 1.0,
        ask: int | None = None,
        asked_id: str | None = None,
        asker: int = 0,
        extents: Extents = (),
        rules: OutputRules | None = None,
        form: AnswerForm | None = None,
    ) -> None:
        self.client = client  # the connection; (client, id) is unique among open calls
        self.id = id
        self.ref = ref
        self.spec = spec
        self.rows = rows
        self.received_s = received_s
        self.deadline_s = deadline_s
        self.framed = framed  # the answer's tensors travel as frames
        self.weight = weight
        self.ask = ask  # number of the Ask, where an application opened it
        self.asked_id = asked_id  # for the log, in place of `id`
        self.asker = asker  # who asks, as the controller tells clients apart
        self.extents = extents  # of its inputs, in the model's open dimensions
        self.rules = rules  # for its outputs; None: their shapes are those of the spec
        self.form = form  # of its answer, if there are no rules; None: nobody has prepared one
        self.parts: list[CallPart] = []
        self.size = 0  # bytes of its inputs, once it has parts
        self.missing = 0  # parts without outputs
        self.answered = False
        self.flight: Any = None  # in the prediction cache, if this call leads or follows one
        self.malformed = ""  # why outputs that came were not those of the model
        self.first: int | None = None  # number of its first part, which may be in halves by now; None: it has no parts

    @property
    def sizes(self) -> tuple[int, ...]:
        """What its inputs' bytes do not tell of their shapes; empty if they tell everything."""
        return (self.rows, *self.extents) if self.extents else ()

    @property
    def number(self) -> int | None:
        """The number that a controller's log has of it: its first part's; None if it has no parts."""
        return self.first

    @property
    def submitted(self) -> bool:
        """Whether a controller was told of it."""
        return bool(self.parts) and self.parts[0].attempt >= 0


class CallPart:
    """One submission."""

    __slots__ = ("attempt", "call", "controller", "inherited", "kept", "number", "outputs", "rows", "shapes", "tensors")

    def __init__(
        self, call: Call, number: int, rows: int, tensors: Sequence[bytes | memoryview], attempt: int = -1
    ) -> None:
        self.call = call
        self.number = number
        self.rows = rows
        self.tensors = tensors
        self.controller: str | None = None  # member id of its controller; None: not submitted, or that one was lost
        self.attempt = attempt  # of the last submission; -1: there was none
        self.outputs: Sequence[Any] | None = None  # one buffer per output
        self.shapes: Shapes = ()  # of the outputs
        self.inherited = False  # it was last submitted for another call, which is gone, with the budget of that one
        self.kept: wire.Kept | None = None  # what was submitted in place of inputs that are large; None: nothing yet


class Completed:
    """A call that has all its outputs."""

    __slots__ = ("batch_padded", "batch_size", "call", "cold", "device", "pieces", "predicted_s")

    def __init__(
        self,
        call: Call,
        batch_size: int,
        predicted_s: float,
        device: str,
        cold: bool = False,
        batch_padded: int = 0,
        pieces: Sequence[Sequence[Any]] = (),
    ) -> None:
        self.call = call
        self.batch_size = batch_size  # rows that were asked for in the batch of the last part to complete
        self.predicted_s = predicted_s
        self.device = device
        self.cold = cold  # no device held the model when the last part to complete arrived
        self.batch_padded = batch_padded  # rows that EXEC computed in that batch, padding included
        self.pieces = pieces  # outputs of each part

    def joined(self) -> tuple[Sequence[Any], Shapes]:
        """The outputs and their shapes; (): the spec's. Raises: OutputFault, if the parts' do not fit together.

        One buffer per output, with all rows; copied only if the call was split.
        """
        rules = self.call.rules
        if rules is not None:
            parts = zip(self.call.parts, self.pieces, strict=True)
            return rules.joined([OutputPart(part.rows, outputs, part.shapes) for part, outputs in parts])
        if len(self.pieces) == 1:
            return self.pieces[0], ()
        return [b"".join(column) for column in zip(*self.pieces, strict=True)], ()
