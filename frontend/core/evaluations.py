"""The request table and the prediction cache together. Pure.

A cached call is answered, a call identical to one in flight waits for it, any other is submitted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from frontend.core.cache import Flight, PredictionCache
from frontend.core.requests import Call, CallPart, Completed, RequestTable

Tensors = Sequence[bytes | memoryview]


@dataclass(frozen=True, slots=True)
class EvaluationStart:
    """Result of `enter`: `outputs` from the cache, `parts` to submit, or neither: it waits for an identical call."""

    outputs: tuple[bytes, ...] | None = None
    parts: Sequence[CallPart] = ()


class Evaluations:
    """Composes the two: others may read them, but only this class changes them."""

    def __init__(self, table: RequestTable, cache: PredictionCache[Call]) -> None:
        self.table, self.cache = table, cache

    def enter(self, call: Call, tensors: Tensors, cached: bool) -> EvaluationStart:
        """Enters a call.

        `cached`: the caller and the model allow the cache. With outputs, the call has ended unopened.
        """
        cache = self.cache
        if not cached or not cache.on:
            return EvaluationStart(parts=self.table.open(call, tensors))
        edition = call.spec.edition(call.ref)
        key = cache.key(edition, tensors)
        outputs = cache.get(key, edition, tensors)
        if outputs is not None:
            call.answered = True
            return EvaluationStart(outputs=outputs)
        flight = cache.flight(key, edition, tensors)
        if flight is not None and flight.leader.deadline_s <= call.deadline_s:  # a later flight may end too late
            cache.follow(flight, call)
            self.table.wait(call)
            return EvaluationStart()
        call.flight = cache.lead(key, edition, tensors, call)
        return EvaluationStart(parts=self.table.open(call, tensors))

    def succeeded(self, completed: Completed, outputs: Sequence[bytes], remember: bool) -> list[Call]:
        """A call has its outputs; they are cached if `remember`.

        Returns the calls that waited for them; they have ended.
        """
        flight: Flight[Call] | None = completed.call.flight
        if flight is None:
            return []
        followers = [call for call in self.cache.landed(flight) if not call.answered]
        for call in followers:
            self.table.end(call)
        if remember:
            self.cache.put(flight, outputs)
        return followers

    def ended(self, call: Call) -> Sequence[CallPart]:
        """A call ended without outputs. Of those that waited for it, the most urgent one takes its place.

        Returns that call's parts, to be submitted. If another one led, the most urgent might wait for an evaluation
        that is scheduled too late for it.
        """
        flight: Flight[Call] | None = call.flight
        if flight is None:
            return ()
        followers = [other for other in self.cache.landed(flight) if not other.answered]
        if not followers:
            return ()
        leader = min(followers, key=lambda other: other.deadline_s)
        rest = [other for other in followers if other is not leader]
        leader.flight = self.cache.lead(flight.key, flight.ref, flight.inputs, leader)
        leader.flight.followers = rest
        return self.table.start(leader, flight.inputs)
