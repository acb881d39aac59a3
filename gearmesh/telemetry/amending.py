"""Lines of a log, or facts of a recording, as they hold in the end: a later line may amend an earlier one. Pure."""

from collections.abc import Iterable
from typing import TypeVar

import msgspec

from mesh.facts import ActionFact, AmendedFact, RequestFact

F = TypeVar("F", bound=RequestFact | ActionFact)


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
