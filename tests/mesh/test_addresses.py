"""mesh/addresses.py: where a member can be called."""

import pytest

from mesh.addresses import are_usable, is_tcp


@pytest.mark.parametrize(
    "address",
    ["tcp://127.0.0.1:1", "tcp://0.0.0.0:65535", "tcp://gpu-7.rack_2.example:24031", "tcp://[::1]:24031",
     "tcp://[fe80::1%eth0]:1"],
)  # fmt: skip
def test_an_address_that_may_be_called(address: str) -> None:
    assert is_tcp(address)
    assert are_usable((address,))
    assert are_usable(("memory://24031/controller", address))


@pytest.mark.parametrize(
    "address",
    ["", "tcp://", "tcp://host", "tcp://host:", "tcp://host:0", "tcp://host:65536", "tcp://host:-1", "tcp://:1",
     "tcp://a b:1", "tcp://host:1/path", "tcp://host:1;tcp://other:2", "garbage://x", "ipc:///tmp/x", "TCP://host:1",
     "tcp://host:1\n", "memory://", "memory://a b", "tcp://" + "x" * 300 + ":1"],
)  # fmt: skip
def test_an_address_that_nobody_should_try(address: str) -> None:
    assert not is_tcp(address)
    assert not are_usable(("tcp://host:1", address))


def test_without_an_address_for_other_processes_nobody_can_call() -> None:
    assert not are_usable(())
    assert not are_usable(("memory://24031/controller",))
