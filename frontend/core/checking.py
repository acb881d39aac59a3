"""Where a client's message is only looked at, and nothing has changed yet. Pure.

An exception that nobody foresaw costs that one message there: it is refused with `internal_error`, and the exception is
the refusal's cause, which the shell logs. Anywhere else such an exception ends the process. What is done for every
request does not pay for the decorator, and has the same two clauses of its own.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from frontend.core.protocol import Id, RequestRefused
from mesh.codes import AnswerStatus, ErrorCode

Arguments = ParamSpec("Arguments")
Found = TypeVar("Found")


def unforeseen(error: Exception, request_id: Id | None = None) -> RequestRefused:
    """The refusal of a message that made a check raise."""
    text = "the frontend failed while it looked at this message; its log says how. Please report it"
    refusal = RequestRefused(ErrorCode.INTERNAL_ERROR, text, None, request_id, AnswerStatus.FAILED)
    refusal.__cause__ = error
    return refusal


def checking(check: Callable[Arguments, Found]) -> Callable[Arguments, Found]:
    """A decorator of what changes nothing: whatever it raises is a RequestRefused."""

    @functools.wraps(check)
    def checked(*args: Arguments.args, **options: Arguments.kwargs) -> Found:
        try:
            return check(*args, **options)
        except RequestRefused:
            raise
        except Exception as error:
            raise unforeseen(error) from error

    return checked
