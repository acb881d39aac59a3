"""mesh/addresses.py: where a member says that it listens."""

import pytest

from mesh.addresses import ADDRESS_LENGTH_MAX, ADDRESSES_MAX, address_fault

GOOD = ("tcp://127.0.0.1:5555", "tcp://[::1]:1", "tcp://[fe80::1%eth0]:65535", "tcp://0.0.0.0:80")


@pytest.mark.parametrize("address", GOOD)
def test_an_ip_address_with_a_port_can_be_called(address: str) -> None:
    assert address_fault([address]) == ""
    assert address_fault(["memory://5555/results", address]) == ""


BAD = {
    "none": [],
    "too many": [GOOD[0]] * (ADDRESSES_MAX + 1),
    "only in memory": ["memory://nope"],
    "another transport": ["ipc:///tmp/x"],
    "within ZeroMQ": ["inproc://x"],
    "no transport": ["garbage://x"],
    "nothing": [""],
    "a name": ["tcp://nosuchhost.invalid:1"],
    "any": ["tcp://*:5"],
    "no host": ["tcp://:5"],
    "no port": ["tcp://127.0.0.1"],
    "port 0": ["tcp://127.0.0.1:0"],
    "port beyond the last": ["tcp://127.0.0.1:65536"],
    "port that is no number": ["tcp://127.0.0.1:x"],
    "negative port": ["tcp://127.0.0.1:-1"],
    "digits of another script": ["tcp://127.0.0.1:\u0661"],
    "source address": ["tcp://127.0.0.1:1;127.0.0.1:2"],
    "too long": ["memory://" + "x" * ADDRESS_LENGTH_MAX, GOOD[0]],
    "one of two": [GOOD[0], "garbage://x"],
}


@pytest.mark.parametrize("addresses", BAD.values(), ids=BAD)
def test_what_cannot_be_called_is_said(addresses: list[str]) -> None:
    assert address_fault(addresses)
