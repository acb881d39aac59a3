"""frontend/core/checking.py: an exception that nobody foresaw, where a message is only looked at."""

import pytest

from frontend.core.applications import definitions
from frontend.core.applications.messages import NotServed
from frontend.core.checking import checking
from frontend.core.protocol import CreateApp, RequestRefused
from mesh.codes import AnswerStatus, ErrorCode
from tests.frontend.core.applications.cores import Core, definition, entry, table
from tests.frontend.core.applications.test_administration import refusal


def test_it_is_a_refusal_whose_cause_it_is() -> None:
    @checking
    def check(divisor: int, *, by: int) -> float:
        return by / divisor

    assert check(2, by=3) == 1.5
    with pytest.raises(RequestRefused) as refused:
        check(0, by=3)
    assert (refused.value.code, refused.value.status) == (ErrorCode.INTERNAL_ERROR, AnswerStatus.FAILED)
    assert isinstance(refused.value.__cause__, ZeroDivisionError)


def test_a_refusal_that_was_meant_stays_what_it_is() -> None:
    meant = RequestRefused(ErrorCode.BAD_SLO, "no")

    @checking
    def check() -> None:
        raise meant

    with pytest.raises(RequestRefused) as refused:
        check()
    assert refused.value is meant


def test_a_definition_that_makes_its_check_raise_is_refused_and_in_a_table_not_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at = Core()
    monkeypatch.setattr(definitions, "make_policy", lambda *_, **__: 1 // 0)
    made = at.ask(CreateApp(id=1, app=definition(name="other")))
    assert refusal(made) == (ErrorCode.INTERNAL_ERROR, AnswerStatus.FAILED, None, 1)
    (fact,) = at.handle(table(entry(definition(name="other"))))
    assert isinstance(fact, NotServed)
    assert fact.app == "other"
