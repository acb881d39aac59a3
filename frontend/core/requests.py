"""Requests in flight; each gets exactly one answer. Pure.

A request is one *call* of a client. It is submitted in one or more *parts*, each no larger than the model's largest
batch. The first terminal event of a call decides: all its parts' outputs, the refusal of one part, its deadline, or
that its client gives it up.
"""

import heapq
from collections.abc import Hashable, Sequence
from typing import Any

from frontend.core.by_client import OpenByClient
from frontend.core.open_calls import Call, CallPart, Completed
from frontend.core.output_rules import OutputFault, Shapes
from frontend.core.shares import Shares, fit_all, fits
from frontend.core.splitting import split

REFUSAL_S = 0.015  # a call waits at least this long, so that a refusal arrives with its reason even on a smaller budget


class RequestTable:
    """All calls in flight in one frontend."""

    def __init__(self, in_flight_max: int, bytes_max: int) -> None:
        self.in_flight_max = in_flight_max
        self.bytes_max = bytes_max
        self.bytes_held = 0  # inputs of open calls that have parts
        self.released: list[CallPart] = []  # have ended, but what was kept of their inputs is still there
        self._calls: OpenByClient[Call] = OpenByClient()
        self._parts: dict[int, CallPart] = {}  # {number: part without outputs of an open call}
        self._deadlines: list[tuple[float, int, Call]] = []  # heap; may still hold answered calls
        self._count = 0  # parts so far
        self._opened = 0  # calls so far
        self._ended_in_heap = 0  # answered calls in the heap
        self._shares = Shares()  # what each client, told apart as controllers do, has of the limits

    def __len__(self) -> int:
        return len(self._calls)

    def full_for(self, asker: int, most: int) -> bool:
        """Whether this client can open no further call: `most` are open, or the client has its share of those."""
        count = len(self._calls)
        return not fit_all(count, most) and not fits(self._shares.of(asker).calls, 1, count, most)

    def beyond(self, asker: int, limit: int) -> bool:
        """Whether this client can open no further call while only so many should be open, though more may be still.

        Who has less than an equal part of them can.
        """
        return self.full_for(asker, limit) and not self._shares.is_fair(asker, limit)

    def memory_full_for(self, asker: int) -> bool:
        """Whether the inputs of open calls, or those of this client's, take so much memory that it can open no more."""
        held = self.bytes_held
        return not fit_all(held, self.bytes_max) and not fits(self._shares.of(asker).bytes, 0, held, self.bytes_max)

    def holds(self, client: Hashable, call_id: int | str) -> bool:
        """Whether a call with this id is open on this connection."""
        return self._calls.get(client, call_id) is not None

    def get(self, client: Hashable, call_id: int | str) -> Call | None:
        """The open call with this id on this connection; None if there is none."""
        return self._calls.get(client, call_id)

    def of(self, client: Hashable) -> list[Call]:
        """The calls that are open on this connection, oldest first."""
        return self._calls.of(client)

    def all(self) -> list[Call]:
        """All open calls, those of one connection oldest first."""
        return self._calls.all()

    def open(self, call: Call, tensors: Sequence[bytes | memoryview]) -> list[CallPart]:
        """Opens the call and returns its parts, to be submitted. The table must not be `full`, nor the id in use."""
        self.wait(call)
        return self.start(call, tensors)

    def wait(self, call: Call) -> None:
        """Opens the call without parts: it waits for another call's outputs, until its own deadline."""
        self._calls.add(call.client, call.id, call)
        self._shares.opened(call.asker)
        self._opened += 1
        expires_s, least_s = call.deadline_s, call.received_s + REFUSAL_S
        if expires_s < least_s:
            expires_s = least_s
        heapq.heappush(self._deadlines, (expires_s, self._opened, call))

    def start(self, call: Call, tensors: Sequence[bytes | memoryview]) -> list[CallPart]:
        """Gives an open call without parts its parts, and returns them, to be submitted."""
        parts = call.parts
        if call.rows <= call.spec.batch_max:
            parts.append(self._add(call, call.rows, tensors))
        else:
            for rows, parted in split(call.spec, call.rows, call.extents, tensors, call.spec.batch_max):
                parts.append(self._add(call, rows, parted))
        call.first = parts[0].number
        call.missing = len(parts)
        size = len(tensors[0]) if len(tensors) == 1 else sum(map(len, tensors))
        call.size = size
        self.bytes_held += size
        self._shares.add_bytes(call.asker, size)
        return parts

    def end(self, call: Call) -> None:
        """Ends the call: it got the outputs that it waited for, or is given up."""
        self._end(call)

    def hand_over(self, call: Call, heir: Call) -> None:
        """Ends the call. Its parts go on as those of `heir`, an open call of the same inputs that has no parts.

        Outputs of them count for the heir. A refusal does not, because another call's budget was refused: see
        `refused_before`.
        """
        heir.parts, call.parts = call.parts, []
        heir.missing, call.missing = call.missing, 0
        heir.first, call.first = call.first, None
        heir.size, call.size = call.size, 0
        self._shares.add_bytes(call.asker, -heir.size)
        self._shares.add_bytes(heir.asker, heir.size)
        for part in heir.parts:
            part.call = heir
            part.inherited = True
        self._end(call)

    def halve(self, number: int, attempt: int) -> Sequence[CallPart]:
        """A part was refused for its rows, of which fewer fit together: two take its place, and are to be submitted.

        None do if its model has no open dimensions, as then the spec says how many fit; or if it has one row; or if its
        call has ended, or there is a later attempt.
        """
        part = self._parts.get(number)
        if part is None or attempt < part.attempt or part.rows < 2 or not part.call.spec.dims:
            return ()
        call = part.call
        most = (part.rows + 1) // 2
        halves = [
            self._add(call, rows, tensors)
            for rows, tensors in split(call.spec, part.rows, call.extents, part.tensors, most)
        ]
        place = call.parts.index(part)
        call.parts[place : place + 1] = halves
        call.missing += len(halves) - 1
        del self._parts[number]
        self._release(part)
        return halves

    def _add(self, call: Call, rows: int, tensors: Sequence[bytes | memoryview]) -> CallPart:
        self._count += 1
        part = self._parts[self._count] = CallPart(call, self._count, rows, tensors)
        return part

    def submitted(self, part: CallPart, controller: str) -> int:
        """Records that the part goes to this controller. Returns the number of the attempt."""
        part.controller = controller
        part.attempt += 1
        part.inherited = False
        return part.attempt

    def awaits(self, number: int) -> bool:
        """Whether the outputs of this part are awaited."""
        return number in self._parts

    def inputs(self, number: int) -> Sequence[bytes | memoryview]:
        """The inputs of this part; empty if it has ended."""
        part = self._parts.get(number)
        return () if part is None else part.tensors

    def outputs(
        self,
        number: int,
        outputs: Sequence[Any],
        batch_size: int,
        predicted_s: float,
        device: str,
        cold: bool = False,
        batch_padded: int = 0,
    ) -> Completed | None:
        """Takes in a part's outputs, of any attempt. Returns the call if it is complete now."""
        part = self._parts.pop(number, None)
        if part is None:
            return None  # the call has ended already
        part.outputs = outputs
        call = part.call
        call.missing -= 1
        if call.missing:
            return None
        if len(call.parts) == 1:
            pieces: list[Sequence[Any]] = [outputs]
        else:
            pieces = [each.outputs for each in call.parts if each.outputs is not None]
        self._end(call)
        return Completed(call, batch_size, predicted_s, device, cold, batch_padded, pieces)

    def end_if_malformed(self, number: int, outputs: Sequence[bytes | memoryview], shapes: Shapes = ()) -> Call | None:
        """Checks a part's outputs: if their number or sizes are not the model's, ends the call and returns it.

        `shapes`: as the worker tells them; they count for the part from now on, if they can be.
        """
        part = self._parts.get(number)
        if part is None:
            return None
        call = part.call
        if call.rules is None:
            if call.form is not None and call.form.fits(part.rows, outputs):
                return None
        else:
            try:
                part.shapes = call.rules.checked(part.rows, call.extents, shapes, outputs)
            except OutputFault as fault:
                call.malformed = str(fault)
            else:
                return None
        self._end(call)
        return call

    def refused_before(self, number: int, attempt: int) -> CallPart | None:
        """A part was refused that was submitted for a call that is gone: it is submitted no more, and returned.

        None if it is none of these; then `refused` knows more.
        """
        part = self._parts.get(number)
        if part is None or not part.inherited or attempt < part.attempt:
            return None
        part.controller = None
        return part

    def is_at(self, number: int, controller: str) -> bool:
        """Whether this controller has the part, as far as anybody has it; True of one that is not open (any more)."""
        part = self._parts.get(number)
        return part is None or part.controller == controller

    def refused(self, number: int, attempt: int) -> Call | None:
        """A part was refused: ends its call and returns it; None if the call has ended or there is a later attempt."""
        part = self._parts.get(number)
        if part is None or attempt < part.attempt:
            return None
        self._end(part.call)
        return part.call

    def ended(self, number: int) -> bool:
        """Whether a part of this number was once open, and is not any more."""
        return number <= self._count and number not in self._parts

    def close_all(self) -> list[Call]:
        """Ends all open calls and returns them; the caller has to answer them."""
        calls = self.all()
        for call in calls:
            self._end(call)
        return calls

    def controller_lost(self, controller: str) -> list[CallPart]:
        """The parts that the lost controller had; to be submitted elsewhere, with what is left of their budgets."""
        parts = [part for part in self._parts.values() if part.controller == controller]
        for part in parts:
            part.controller = None
        return parts

    def unsubmitted(self) -> list[CallPart]:
        """Parts that no controller has, oldest first."""
        return [part for part in self._parts.values() if part.controller is None]

    def due(self, now: float) -> Call | None:
        """The open call whose deadline has passed first; None if none has passed. It stays open: the caller ends it."""
        heap = self._open_deadlines()
        return heap[0][2] if heap and heap[0][0] <= now else None

    def wake_at(self) -> float | None:
        """The next deadline; None if there is none."""
        heap = self._open_deadlines()
        return heap[0][0] if heap else None

    def _open_deadlines(self) -> list[tuple[float, int, Call]]:
        """The heap, empty or with an open call at its head."""
        heap = self._deadlines
        while heap and heap[0][2].answered:
            heapq.heappop(heap)
            self._ended_in_heap -= 1
        return heap

    def _end(self, call: Call) -> None:
        call.answered = True
        self.bytes_held -= call.size
        self._calls.remove(call.client, call.id)
        self._shares.ended(call.asker, call.size)
        for part in call.parts:
            self._parts.pop(part.number, None)
            self._release(part)  # the call stays in the heap for a while, but must not keep this memory
            if part.outputs is not None:
                part.outputs = ()
        self._ended_in_heap += 1
        if self._ended_in_heap > 64 and self._ended_in_heap > 2 * len(self._calls):
            self._deadlines = [entry for entry in self._deadlines if not entry[2].answered]
            heapq.heapify(self._deadlines)
            self._ended_in_heap = 0

    def _release(self, part: CallPart) -> None:
        """The part's inputs are not needed any more."""
        part.tensors = ()
        if part.kept is not None:
            self.released.append(part)

    def check(self) -> None:
        """Asserts every invariant."""
        self._calls.check()
        calls = self._calls.all()
        for call in calls:
            assert self._calls.get(call.client, call.id) is call
            assert not call.answered
            assert all(part.call is call for part in call.parts)
            assert call.missing == sum(part.outputs is None for part in call.parts)
            assert call.missing > 0 or not call.parts
            assert (call.first is None) == (not call.parts)
        open_parts = {p.number for call in calls for p in call.parts if p.outputs is None}
        assert open_parts == self._parts.keys()
        assert self.bytes_held == sum(call.size for call in calls if call.parts)
        self._shares.check(
            {
                asker: (len(own), sum(call.size for call in own))
                for asker in {call.asker for call in calls}
                for own in [[call for call in calls if call.asker == asker]]
            }
        )
        ended = [part for entry in self._deadlines if entry[2].answered for part in entry[2].parts]
        assert not any(part.tensors or part.outputs for part in ended)
        assert self._ended_in_heap == sum(entry[2].answered for entry in self._deadlines)
        assert len(self._deadlines) - self._ended_in_heap == len(self._calls)
