"""CURVE keys of a mesh: one key pair for every port that listens, and a list of the keys that may call.

A keys folder (made by `gearmesh keys FOLDER`) holds ``mesh.key_secret`` (for services), ``mesh.key`` (its public half,
given to clients), ``client.key_secret`` (an ordinary client's pair) and ``allowed/*.key`` (public keys that may call).
Source: ZeroMQ RFC 26 (CurveZMQ) and RFC 27 (ZAP).
"""

from dataclasses import dataclass, field
from pathlib import Path

import zmq
import zmq.auth
from zmq.auth.thread import ThreadAuthenticator

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(slots=True)
class Keys:
    """The keys of one process."""

    folder: Path
    public: bytes
    secret: bytes
    _authenticator: ThreadAuthenticator | None = field(default=None)

    @classmethod
    def read(cls, folder: Path) -> "Keys":
        """The mesh's keys in `folder`. Raises: OSError, ValueError (no secret key in the file)."""
        public, secret = zmq.auth.load_certificate(folder / "mesh.key_secret")
        if secret is None:
            raise ValueError(f"{folder / 'mesh.key_secret'} holds no secret key")
        return cls(folder, public, secret)

    @classmethod
    def make(cls, folder: Path) -> None:
        """Writes a new keys folder. Raises: FileExistsError."""
        folder.mkdir(mode=0o700, parents=True)
        (folder / "allowed").mkdir()
        for name in ("mesh", "client"):
            public, secret = zmq.auth.create_certificates(folder, name)
            Path(secret).chmod(0o600)
            (folder / "allowed" / f"{name}.key").write_text(Path(public).read_text())

    def guard(self, sock: "zmq.Socket[bytes]", context: "zmq.Context[zmq.Socket[bytes]]") -> None:
        """`sock`, not yet bound, will accept only holders of allowed keys."""
        if self._authenticator is None:
            self._authenticator = ThreadAuthenticator(context)
            self._authenticator.start()
            self._authenticator.configure_curve(domain="*", location=str(self.folder / "allowed"))
        sock.setsockopt(zmq.CURVE_SERVER, 1)
        sock.setsockopt(zmq.CURVE_PUBLICKEY, self.public)
        sock.setsockopt(zmq.CURVE_SECRETKEY, self.secret)

    def present(self, sock: "zmq.Socket[bytes]") -> None:
        """`sock`, not yet connected, will present the mesh's own key and accept only the mesh's key."""
        sock.setsockopt(zmq.CURVE_SERVERKEY, self.public)
        sock.setsockopt(zmq.CURVE_PUBLICKEY, self.public)
        sock.setsockopt(zmq.CURVE_SECRETKEY, self.secret)

    def stop(self) -> None:
        """Ends the authenticator's thread."""
        if self._authenticator is not None:
            self._authenticator.stop()
            self._authenticator = None
