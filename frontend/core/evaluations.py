"""The request table and the prediction cache together. Pure.

A cached call is answered, a call identical to one in flight waits for it, any other is submitted.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from frontend.core.cache import Flight, PredictionCache
from frontend.core.open_calls import Call, CallPart, Completed
from frontend.core.output_rules import Shapes
from frontend.core.requests import RequestTable

Tensors = Sequence[bytes | memoryview]


@dataclass(frozen=True, slots=True)
class EvaluationStart:
    """Result of `enter`: `outputs` from the cache, `parts` to submit, or neither: it waits for an identical call."""

    outputs: tuple[bytes, ...] | None = None
    parts: Sequence[CallPart] = ()
    shapes: Shapes = ()  # of the outputs; (): those of the spec


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A call that ended before its outputs came: its time was up, or its client gave it up."""

    call: Call
    needless: Sequence[CallPart]  # its parts, unless others wait for them
    reached: bool  # a controller had a part of it, or of the call that it waited for


class Evaluations:
    """Composes the two: others may read them, but only this class changes them."""

    def __init__(self, table: RequestTable, cache: PredictionCache[Call]) -> None:
        self.table, self.cache = table, cache

    def enter(self, call: Call, tensors: Tensors) -> EvaluationStart:
        """Enters a call for which the cache may be used, and is in use: any other is only opened in the table.

        With outputs, the call has ended unopened.
        """
        cache = self.cache
        edition = call.spec.edition(call.ref)
        sizes = call.sizes
        key = cache.key(edition, tensors, sizes)
        known = cache.find(key, edition, tensors, sizes)
        if known is not None:
            call.answered = True
            return EvaluationStart(outputs=known.outputs, shapes=known.shapes)
        flight = cache.flight(key, edition, tensors, sizes)
        if flight is not None and flight.leader.deadline_s <= call.deadline_s:  # a later flight may end too late
            cache.follow(flight, call, call.deadline_s)
            call.flight = flight
            self.table.wait(call)
            return EvaluationStart()
        call.flight = cache.lead(key, edition, tensors, call, sizes)
        return EvaluationStart(parts=self.table.open(call, tensors))

    def succeeded(
        self, completed: Completed, outputs: Sequence[bytes], remember: bool, shapes: Shapes = ()
    ) -> list[Call]:
        """A call has its outputs; they are cached if `remember`.

        Returns the calls that waited for them; they have ended.
        """
        flight = _landing(completed.call)
        if flight is None:
            return []
        followers = self._end_all(flight)
        if remember:
            self.cache.put(flight, outputs, shapes)
        return followers

    def failed(self, call: Call) -> list[Call]:
        """A call ended because its inputs make the model fail: so would those that waited for it, the same inputs.

        Returns them; they have ended.
        """
        flight = _landing(call)
        return [] if flight is None else self._end_all(flight)

    def ended(self, call: Call) -> Sequence[CallPart]:
        """A call ended without outputs. Of those that waited for it, the most urgent one takes its place.

        Returns that call's parts, to be submitted. If another one led, the most urgent might wait for an evaluation
        that is scheduled too late for it.
        """
        flight = _landing(call)
        leader = self._next_leader(flight)
        return self.table.start(leader, leader.flight.inputs) if leader is not None else ()

    def close_all(self) -> list[Call]:
        """All open calls have ended, and are returned; the caller has to answer them."""
        calls = self.table.close_all()
        for call in calls:
            flight = _landing(call)
            if flight is not None:
                self.cache.landed(flight)
        return calls

    def expire(self, now: float) -> list[GivenUp]:
        """The calls whose deadline has passed are given up, and returned."""
        expired = []
        while (call := self.table.due(now)) is not None:
            expired.append(self._give_up(call))
        return expired

    def cancel(self, client: Hashable, call_id: int | str) -> GivenUp | None:
        """The call with this id is given up, and returned; None if there is none."""
        call = self.table.get(client, call_id)
        return None if call is None else self._give_up(call)

    def client_gone(self, client: Hashable) -> list[GivenUp]:
        """All calls of this connection are given up, and returned."""
        calls = self.table.of(client)
        calls.sort(key=_leads)  # what is led by one of them, and followed by others, is handed over once
        return [self._give_up(call) for call in calls]

    def _give_up(self, call: Call) -> GivenUp:
        """The call ends. What others wait for goes on: the most urgent of them has its parts from now on."""
        followed: Flight[Call] | None = None if _leads(call) else call.flight
        parts = call.parts if followed is None else followed.leader.parts
        reached = any(part.controller is not None for part in parts)
        if followed is not None:
            call.flight = None
            followed.leave(call)
            self.table.end(call)
            return GivenUp(call, (), reached)
        heir = self._next_leader(_landing(call))
        if heir is not None:
            self.table.hand_over(call, heir)
            return GivenUp(call, (), reached)
        self.table.end(call)
        return GivenUp(call, call.parts, reached)

    def _end_all(self, flight: Flight[Call]) -> list[Call]:
        """The flight has landed, and those that followed have ended; they are returned."""
        followers = self.cache.landed(flight)
        for call in followers:
            call.flight = None
            self.table.end(call)
        return followers

    def _next_leader(self, flight: Flight[Call] | None) -> Call | None:
        """The most urgent of those that wait leads the flight. None: nobody waits, and it has landed."""
        if flight is None:
            return None
        leader = flight.succeed()
        if leader is None:
            self.cache.landed(flight)
        return leader

    def check(self) -> None:
        """Asserts every invariant."""
        self.table.check()
        self.cache.check()
        for call in self.table.all():
            flight: Flight[Call] | None = call.flight
            assert flight is not None or call.parts
            assert flight is None or flight.leader is call or call in flight.followers
            assert flight is None or bool(call.parts) == (flight.leader is call)
            assert flight is None or not any(follower.answered for follower in flight.followers)


def _leads(call: Call) -> bool:
    """Whether the call has parts of its own, for itself alone or for others as well."""
    return call.flight is None or call.flight.leader is call


def _landing(call: Call) -> Flight[Call] | None:
    """The flight that the call led; it leads and follows none any more."""
    flight: Flight[Call] | None = call.flight
    call.flight = None
    return flight
