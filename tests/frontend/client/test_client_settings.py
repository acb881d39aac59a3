"""A client that is given no address reads the settings as every other program of the mesh does."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from frontend.client.async_client import AsyncClient
from frontend.client.client import Client, RequestError
from frontend.client.defaults import DEFAULTS, LOOPBACK, default_frontend
from gearmesh.operations.ports import free_ports
from mesh.errors import GearmeshError
from mesh.net import keys
from mesh.net.keys import Keys
from mesh.process.configuration import read_settings
from mesh.process.settings import Settings
from tests.messages import names

HERE, ELSEWHERE = "gearmesh.toml", "elsewhere.toml"
FOUND: list[tuple[dict[str, str], dict[str, str]]] = [  # (files, environment)
    ({}, {}),
    ({}, {"GEARMESH_FRONTEND_PORT": "5000"}),
    ({}, {"GEARMESH_HOST": "localhost"}),
    ({HERE: "frontend_port = 5001"}, {}),
    ({HERE: "frontend_port = '5001'\ntelemetry = false"}, {"GEARMESH_THREADS": "2"}),
    ({HERE: "frontend_port = 5001\nhost = 'localhost'"}, {"GEARMESH_FRONTEND_PORT": "5002"}),
    ({HERE: "frontend_port = 5001", ELSEWHERE: "frontend_port = 5003"}, {"GEARMESH_CONFIG": ELSEWHERE}),
    ({HERE: "frontend_port = 5001", ELSEWHERE: ""}, {"GEARMESH_CONFIG": ELSEWHERE}),
    ({HERE: "frontend_port = 5001"}, {"GEARMESH_CONFIG": os.devnull}),
    ({HERE: "frontend_port = 5001"}, {"GEARMESH_CONFIG": ""}),
    ({HERE: "keys_dir = 'keys'"}, {}),
    ({HERE: "host = '10.0.0.1'"}, {"GEARMESH_KEYS_DIR": "keys"}),
]
WRONG: list[tuple[dict[str, str], dict[str, str], str]] = [  # (files, environment, what is named)
    ({}, {"GEARMESH_FRONTEND_PORT": "five"}, "frontend_port"),
    ({}, {"GEARMESH_FRONTEND_PORT": "65536"}, "frontend_port"),
    ({HERE: "frontend_port = -1"}, {}, "frontend_port"),
    ({HERE: "frontend_port = []"}, {}, "frontend_port"),
    ({HERE: "frontend_port"}, {}, HERE),
    ({}, {"GEARMESH_CONFIG": "nowhere.toml"}, "nowhere.toml"),
    ({}, {"GEARMESH_KEYS_DIR": "nowhere"}, "keys_dir=nowhere"),
    ({}, {"GEARMESH_HOST": "10.0.0.1"}, "GEARMESH_KEYS_DIR"),
]


@pytest.fixture
def settle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str], dict[str, str]], None]:
    """Writes the files into the working folder, beside the mesh's keys in `keys`, and sets the environment."""
    for name in [name for name in os.environ if name.startswith("GEARMESH_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def write(files: dict[str, str], environment: dict[str, str]) -> None:
        Keys.make(tmp_path / "keys")
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return write


def test_what_is_read_twice_is_the_same() -> None:
    assert {name: getattr(Settings(), name) for name in DEFAULTS} == DEFAULTS
    assert keys.LOOPBACK == LOOPBACK


@pytest.mark.parametrize(("files", "environment"), FOUND)
def test_a_client_finds_what_the_services_do(
    settle: Callable[[dict[str, str], dict[str, str]], None], files: dict[str, str], environment: dict[str, str]
) -> None:
    settle(files, environment)
    settings = read_settings()
    own = settings.keys()
    address, found = default_frontend()
    assert address == settings.frontend_address
    assert (found is None) == (own is None)
    if found is not None and own is not None:
        assert found[0] == own.public
        assert found[1] != own.public, "an ordinary client's pair, where it is there"
    with Client() as client, Client(settings.frontend_address) as named:
        assert type(client) is type(named)


@pytest.mark.parametrize(("files", "environment", "named"), WRONG)
def test_a_setting_that_is_wrong_for_the_services_is_named_by_the_client_too(
    settle: Callable[[dict[str, str], dict[str, str]], None],
    files: dict[str, str],
    environment: dict[str, str],
    named: str,
) -> None:
    settle(files, environment)
    with pytest.raises(GearmeshError):
        read_settings().keys()
    with pytest.raises(ValueError, match=named):
        Client()


def test_the_meshs_own_keys_serve_where_the_clients_are_not(
    settle: Callable[[dict[str, str], dict[str, str]], None], tmp_path: Path
) -> None:
    settle({}, {"GEARMESH_KEYS_DIR": "keys"})
    (tmp_path / "keys" / "client.key_secret").unlink()
    own = read_settings().keys()
    assert own is not None
    assert default_frontend()[1] == (own.public, own.public, own.secret)
    assert default_frontend(keys=(b"a", b"b", b"c"))[1] == (b"a", b"b", b"c")


def test_any_free_port_is_no_address(settle: Callable[[dict[str, str], dict[str, str]], None]) -> None:
    settle({}, {"GEARMESH_FRONTEND_PORT": "0"})
    with pytest.raises(ValueError, match="frontend_port=0"):
        Client()


def test_an_address_that_is_given_is_all_that_counts(
    settle: Callable[[dict[str, str], dict[str, str]], None],
) -> None:
    settle({HERE: "no TOML"}, {"GEARMESH_FRONTEND_PORT": "five", "GEARMESH_KEYS_DIR": "nowhere"})
    Client("tcp://127.0.0.1:9").close()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_address_that_was_tried_is_named(
    settle: Callable[[dict[str, str], dict[str, str]], None], asynchronous: bool
) -> None:
    (port,) = free_ports(1)
    settle({}, {"GEARMESH_FRONTEND_PORT": str(port)})

    def ask() -> None:
        with Client() as client:
            client.call("ping", timeout_s=0.05)

    async def ask_on_a_loop() -> None:
        async with AsyncClient() as client:
            await client.call("ping", timeout_s=0.05)

    with pytest.raises(RequestError) as raised:
        asyncio.run(ask_on_a_loop()) if asynchronous else ask()
    assert names(str(raised.value), f"tcp://127.0.0.1:{port}")
