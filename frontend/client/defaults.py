"""Where a client that is given no address finds its frontend: the mesh's settings, as every other program reads them.

They are read here with the standard library alone, because a client has no more: first `gearmesh.toml` (in the working
folder, or at ``GEARMESH_CONFIG``), then the environment. mesh/process/settings.py has all settings.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PREFIX = "GEARMESH_"
CONFIG = "GEARMESH_CONFIG"
FILE = "gearmesh.toml"
DEFAULTS: Mapping[str, Any] = {"host": "127.0.0.1", "frontend_port": 5555, "keys_dir": ""}
LOOPBACK = ("127.0.0.1", "localhost", "::1")
CurveKeys = tuple[bytes, bytes, bytes]  # (server's public, own public, own secret)


def default_frontend(
    environment: Mapping[str, str] | None = None, keys: CurveKeys | None = None
) -> tuple[str, CurveKeys | None]:
    """(address, keys) of the settings' frontend; `keys` take the place of those that the settings name.

    Raises: ValueError, which names the setting that is wrong.
    """
    found = {**DEFAULTS, **_settings(os.environ if environment is None else environment)}
    host, port = str(found["host"]), _port(found["frontend_port"])
    if keys is None and found["keys_dir"]:
        keys = read_keys(Path(str(found["keys_dir"])))
    if keys is None and host not in LOOPBACK:
        raise ValueError(
            f"host={host} is reached over a network, where a mesh has keys: set GEARMESH_KEYS_DIR to a folder with "
            "client.key_secret and mesh.key"
        )
    return f"tcp://{host}:{port}", keys


def read_keys(folder: Path) -> CurveKeys:
    """A client's keys in a folder made by `gearmesh keys`: the pair `own`, or `client`, or the mesh's own.

    Raises: ValueError.
    """
    import zmq.auth  # a client without keys needs no more of pyzmq than the sockets

    own = next((name for name in ("own", "client") if (folder / f"{name}.key_secret").exists()), "mesh")
    try:
        with (folder / f"{own}.key_secret").open("rb") as file:  # pyzmq would say of a missing file that it is invalid
            public, secret = zmq.auth.load_certificate(file.name)
        server = public if own == "mesh" else zmq.auth.load_certificate(folder / "mesh.key")[0]
        if secret is None:
            raise ValueError("the file holds no secret key")
    except (OSError, ValueError) as error:
        raise ValueError(f"keys_dir={folder}: no usable keys there: {error}") from error
    return server, public, secret


def _settings(environment: Mapping[str, str]) -> dict[str, Any]:
    """What the file and the environment say of the settings that a client needs."""
    named = environment.get(CONFIG)
    file = Path(named) if named else Path(FILE)
    found: dict[str, Any] = {}
    if named or file.exists():
        import tomllib  # not for clients that have no file

        try:
            found = tomllib.loads(file.read_text())
        except OSError as error:
            raise ValueError(f"{file}: cannot be read: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{file}: is not TOML: {error}") from error
    found |= {key.removeprefix(PREFIX).lower(): value for key, value in environment.items() if key.startswith(PREFIX)}
    return {name: found[name] for name in DEFAULTS if name in found}


def _port(given: Any) -> int:
    try:
        port = int(given)
    except (TypeError, ValueError):
        port = -1
    if not 0 <= port <= 65535:
        raise ValueError(f"frontend_port={given!r}: must be a port, 1 to 65535")
    if port == 0:
        raise ValueError("frontend_port=0: the frontend listens on any free port, so its address has to be given")
    return port
