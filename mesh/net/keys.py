"""The keys of one process: with which it calls the ports of its mesh, and with which its own ports listen.

A mesh that has a folder of keys (GEARMESH_KEYS_DIR) uses CURVE everywhere. One without, which stays on loopback, has a
pair in its data_dir that only its own user can read. Its broker's port uses CURVE with that pair, so that nobody else
can pass for the broker; its other internal ports ask for a ticket that only a reader of the pair can write, and then
carry messages in clear text; its clients' port is open.
Source: ZeroMQ RFC 26 (CurveZMQ) and RFC 24 (PLAIN).
"""

import hashlib
import hmac
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

import zmq
import zmq.auth

from mesh.net.key_folder import make_folder
from mesh.process.files import not_written
from mesh.roles import ALL_ROLES, Holder, PortKind

LOOPBACK = ("127.0.0.1", "localhost", "::1")
LOCAL = "mesh.key_secret"  # in data_dir
CurveKeys = tuple[bytes, bytes, bytes]  # (server's public, own public, own secret)


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one process. All keys are Z85."""

    folder: Path
    server: bytes  # public key of every port of the mesh
    public: bytes  # own pair
    secret: bytes
    port_secret: bytes | None = None  # secret half of `server`; None: this process cannot listen
    local: bool = False  # the pair of a mesh without a folder of keys

    @classmethod
    def read(cls, folder: Path) -> "Keys":
        """The keys in a folder of `gearmesh keys`: the mesh's, or one that was made for somebody.

        Raises: OSError, ValueError (no secret key in a file).
        """
        own = next((name for name in ("own", "mesh", "client") if (folder / f"{name}.key_secret").exists()), "mesh")
        public, secret = _pair(folder / f"{own}.key_secret")
        server, port_secret = public, secret
        if own != "mesh":
            listens = (folder / "mesh.key_secret").exists()
            server, port_secret = _pair(folder / "mesh.key_secret") if listens else (_public(folder / "mesh.key"), b"")
        return cls(folder, server, public, secret, port_secret or None)

    @classmethod
    def of_data_dir(cls, folder: Path, *, make: bool) -> "Keys":
        """The keys of the mesh whose data_dir this is; made, if they are not there and `make` is set.

        Raises: OSError, ValueError (others can read them, or they are no keys), NotWritten.
        """
        file = folder / LOCAL
        if make and not file.exists():
            _make_local(file)
        mode = file.stat().st_mode
        if mode & (stat.S_IRWXO | stat.S_IWGRP):
            raise ValueError(
                f"others can use {file} (mode {stat.S_IMODE(mode):o}): remove it and start every process of the mesh "
                "again, which makes a new one; where the disk knows no modes, set GEARMESH_DATA_DIR to another one"
            )
        try:
            public, secret = _pair(file)
        except ValueError as error:
            raise ValueError(
                f"{error}: remove it and start every process of the mesh again, which makes a new one"
            ) from error
        return cls(folder, public, public, secret, secret, local=True)

    @staticmethod
    def make(folder: Path) -> None:
        """Writes a new folder of a mesh's keys. Raises: OSError (FileExistsError: it is there)."""
        make_folder(folder)

    @property
    def for_clients(self) -> CurveKeys | None:
        """What a client of this process presents; None: the clients' port asks for nothing."""
        return None if self.local else (self.server, self.public, self.secret)

    @property
    def advice(self) -> str:
        """What a person can do about a port of the mesh that refuses these keys."""
        if self.local:
            return f"set GEARMESH_DATA_DIR to the data_dir of the mesh's broker; here it is {self.folder.absolute()}"
        return "set GEARMESH_KEYS_DIR to a folder of the mesh's keys with that role; `gearmesh keys` makes one"

    @property
    def holder(self) -> Holder:
        """Who this process is to its own ports."""
        return Holder(self.public.decode(), "mesh", ALL_ROLES)

    def present(self, sock: "zmq.Socket[bytes]", kind: PortKind, peer: str = "") -> None:
        """`sock`, not yet connected, will present the own key, or a ticket, to the port of this kind of that member."""
        if self.local and kind is PortKind.CLIENTS:
            return
        if self.local and kind is not PortKind.BROKER:
            member = peer or "?"  # libzmq takes no empty name
            sock.setsockopt_string(zmq.PLAIN_USERNAME, member)
            sock.setsockopt_string(zmq.PLAIN_PASSWORD, self.ticket(kind, member))
            return
        sock.setsockopt(zmq.CURVE_SERVERKEY, self.server)
        sock.setsockopt(zmq.CURVE_PUBLICKEY, self.public)
        sock.setsockopt(zmq.CURVE_SECRETKEY, self.secret)

    def ticket(self, kind: PortKind, member: str) -> str:
        """What lets its bearer in at this member's port, and nowhere else.

        So whoever listens in the place of a member that is gone learns nothing that its successor, who has another id,
        would take.
        """
        return hmac.new(self.secret, f"{kind}|{member}".encode(), hashlib.sha256).hexdigest()


def _pair(file: Path) -> tuple[bytes, bytes]:
    public, secret = _certificate(file)
    if secret is None:
        raise ValueError(f"{file} holds no secret key")
    return public, secret


def _public(file: Path) -> bytes:
    return _certificate(file)[0]


def _certificate(file: Path) -> tuple[bytes, bytes | None]:
    with file.open("rb"):  # raises what is wrong; pyzmq would say of a missing file that it is invalid
        return zmq.auth.load_certificate(file)


def _make_local(file: Path) -> None:
    """The file holds a new pair, or the one of a process that was faster. Raises: NotWritten."""
    public, secret = zmq.curve_keypair()
    text = f'curve\n    public-key = "{public.decode()}"\n    secret-key = "{secret.decode()}"\n'
    temporary = file.with_name(f"{file.name}.{secrets.token_hex(4)}.tmp")
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(handle, "w") as opened:
                opened.write(text)
            os.link(temporary, file)  # whole from the first moment on, and never in place of another one
        except FileExistsError:
            pass
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise not_written(file, error) from error
