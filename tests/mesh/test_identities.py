"""mesh/identities.py: the names of links."""

import pytest

from mesh.identities import IDENTITY_BYTES_MAX, MEMBER_BYTES_MAX, Identity, claimed, named


def test_a_name_says_whose_link_it_is_which_of_them_and_whom_it_calls() -> None:
    name = named("gpu_worker-1", 7, "0f3c", "frontend-1")
    assert name == b"gpu_worker-1#7.0f3c@frontend-1"
    assert claimed(name) == Identity("gpu_worker-1", 7, "frontend-1")


@pytest.mark.parametrize("member", ["operator-1", "frontend-ü", "a" * MEMBER_BYTES_MAX])
def test_a_name_without_a_number_is_the_members(member: str) -> None:
    assert claimed(member.encode()) == Identity(member)


UNREADABLE = {
    "empty": b"",
    "drawn by libzmq": b"\0abcd",
    "not UTF-8": b"\xff\xfe",
    "no member": b"#1.ab@x",
    "no number": b"a#.ab@x",
    "negative": b"a#-1.ab@x",
    "no nonce": b"a#1@x",
    "no peer": b"a#1.ab",
    "digits of another script": "a#\u0661.ab@x".encode(),
    "number too long": b"a#1234567890123456.ab@x",
    "two peers": b"a#1.ab@x@y",
    "member too long": b"a" * (MEMBER_BYTES_MAX + 1),
    "member too long in bytes": "\u00fc".encode() * (MEMBER_BYTES_MAX // 2 + 1),
    "too long": b"a#1.ab@" + b"x" * IDENTITY_BYTES_MAX,
}


@pytest.mark.parametrize("name", UNREADABLE.values(), ids=UNREADABLE)
def test_what_is_no_name_is_nobodys(name: bytes) -> None:
    assert claimed(name) is None


@pytest.mark.parametrize(
    ("member", "peer"), [("", "x"), ("a#b", "x"), ("a", "x@y"), ("a" * 101, "x"), ("a", "x" * 250)]
)
def test_what_no_port_would_read_is_not_sent(member: str, peer: str) -> None:
    with pytest.raises(ValueError, match="no name of a link"):
        named(member, 1, "ab", peer)
