"""mesh/codes.py: members are their strings, wherever they go, and say what they mean."""

import json
import re
from enum import EnumType

import msgpack
import msgspec
import pytest

from frontend.client.conversation import ERRORS
from frontend.core.protocol import ClientAnswer, Error
from mesh import codes, wire
from mesh.codes import (
    ActionCode,
    AnswerStatus,
    Coded,
    ErrorCode,
    FeedbackReason,
    HttpCode,
    PackageCode,
    ReplyCode,
    RequestOutcome,
    http_of,
    http_of_reply,
)

GROUPS: list[type[Coded]] = [
    AnswerStatus, ErrorCode, HttpCode, ReplyCode, PackageCode, ActionCode, FeedbackReason, RequestOutcome,
]  # fmt: skip
ALL = [code for group in GROUPS for code in group]


def test_no_group_is_left_out_here() -> None:
    found = [value for value in vars(codes).values() if isinstance(value, EnumType) and issubclass(value, Coded)]
    assert set(found) == {Coded, *GROUPS}


@pytest.mark.parametrize("code", ALL, ids=lambda code: f"{type(code).__name__}.{code}")
def test_a_code_is_a_short_name_with_one_line_of_meaning(code: Coded) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", code)
    assert code.meaning
    assert "\n" not in code.meaning
    assert "|" not in code.meaning
    assert code.http is None or 200 <= code.http < 600


@pytest.mark.parametrize("group", GROUPS)
def test_no_code_is_there_twice(group: type[Coded]) -> None:
    assert len(group.__members__) == len({code.value for code in group})


@pytest.mark.parametrize("code", ALL, ids=lambda code: f"{type(code).__name__}.{code}")
def test_a_code_travels_as_its_plain_string(code: Coded) -> None:
    plain = str(code.value)
    assert type(plain) is str
    assert (code == plain, hash(code) == hash(plain), f"{code}") == (True, True, plain)
    assert msgspec.msgpack.encode(code) == msgspec.msgpack.encode(plain)
    assert msgspec.json.encode({code: code}) == msgspec.json.encode({plain: plain})
    assert msgpack.packb({code: code}) == msgpack.packb({plain: plain})
    assert json.dumps({code: code}) == json.dumps({plain: plain})
    assert type(msgspec.to_builtins({"code": code})["code"]) is str


def test_messages_with_codes_are_the_bytes_of_messages_with_strings() -> None:
    def answer(status: str, code: str) -> bytes:
        return msgspec.msgpack.encode(ClientAnswer(id=1, status=status, error=Error(code, "why")))

    assert answer(AnswerStatus.REJECTED, ErrorCode.OVERLOAD) == answer("rejected", "overload")
    reply = wire.CallReply(call=1, ok=False, message="why", code=ReplyCode.IN_USE)
    plain = wire.CallReply(call=1, ok=False, message="why", code="in_use")
    assert msgspec.msgpack.encode(reply) == msgspec.msgpack.encode(plain)
    assert type(msgspec.msgpack.decode(msgspec.msgpack.encode(reply), type=wire.CallReply).code) is str


def test_every_status_that_is_not_ok_is_an_error_of_the_clients() -> None:
    assert ERRORS.keys() == set(AnswerStatus) - {AnswerStatus.OK}


@pytest.mark.parametrize("code", list(ErrorCode))
def test_an_error_code_says_with_which_statuses_it_comes(code: ErrorCode) -> None:
    assert code.statuses
    assert AnswerStatus.OK not in code.statuses
    for status in code.statuses:
        assert http_of(status, code) == (code.http or status.http)


def test_a_code_that_only_a_newer_mesh_knows_has_the_status_of_its_answer() -> None:
    assert http_of("rejected", "tomorrow") == 429
    assert http_of("later", "tomorrow") == 500
    assert http_of_reply("tomorrow") == 400


def test_a_code_that_packages_and_replies_share_has_one_http_status() -> None:
    for code in set(PackageCode) & set(ReplyCode):
        assert PackageCode[code.name].http == ReplyCode[code.name].http
