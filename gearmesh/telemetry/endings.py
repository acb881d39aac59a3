"""How requests ended in the end: a later line may amend an earlier one, and several lines may be one request. Pure."""

from collections import Counter
from collections.abc import Iterable
from typing import TypeVar

import msgspec

from mesh.codes import RequestOutcome
from mesh.facts import ActionFact, AmendedFact, RequestFact

F = TypeVar("F", bound=RequestFact | ActionFact)
ORDER = (  # of the lines of one request, the outcome named last here is the request's
    RequestOutcome.WITHDRAWN, RequestOutcome.FRONTEND_LOST, RequestOutcome.IN_TIME, RequestOutcome.LATE,
    RequestOutcome.REJECTED, RequestOutcome.FAILED, RequestOutcome.TIMED_OUT, RequestOutcome.CANCELLED,
)  # fmt: skip
RANKS: dict[str, int] = {outcome: rank for rank, outcome in enumerate(ORDER)}
RANKS[RequestOutcome.FAILED] = RANKS[RequestOutcome.REJECTED]  # of two parts that were refused, the first is told


def amended(facts: Iterable[F | AmendedFact]) -> list[F]:
    """The facts in their order, each request with the outcome that its client saw; amendments to none are passed over.

    A frontend whose link broke may have submitted a request twice: then the later line is amended.
    """
    kept: list[F] = []
    amendments: list[AmendedFact] = []
    for fact in facts:
        if isinstance(fact, AmendedFact):
            amendments.append(fact)
        else:
            kept.append(fact)
    if amendments:
        where = {(fact.frontend, fact.request): i for i, fact in enumerate(kept) if isinstance(fact, RequestFact)}
        for change in amendments:
            i = where.get((change.frontend, change.request))
            if i is not None:
                kept[i] = msgspec.structs.replace(kept[i], outcome=change.outcome, code="")
    return kept


def endings(facts: Iterable[RequestFact]) -> Counter[str]:
    """{outcome: requests}, as frontends count them: parts of a large request, and what was submitted again, once.

    Of two lines of one number the later one counts: it was submitted again. But that a frontend's link broke, or that
    a part was not needed, is no outcome if another line has one. Where several parts were refused, the first was told.
    """
    parts: dict[tuple[str, int], RequestFact] = {}  # {(frontend, number): the line that counts}
    for fact in facts:
        number = (fact.frontend, fact.request)
        if number not in parts or fact.outcome != RequestOutcome.FRONTEND_LOST:
            parts.pop(number, None)  # the order is that of the lines that count
            parts[number] = fact
    found: dict[tuple[str, int], str] = {}
    for fact in parts.values():
        key = (fact.frontend, fact.call or fact.request)
        before = found.get(key)
        if before is None or RANKS.get(fact.outcome, len(RANKS)) > RANKS.get(before, len(RANKS)):
            found[key] = fact.outcome
    return Counter(found.values())
