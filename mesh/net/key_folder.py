"""Folders of CURVE keys: the mesh's own, with a list of the keys that may call and their roles, and one for each of
those.

The mesh's folder (`gearmesh keys FOLDER`) holds ``mesh.key_secret`` (the pair of the mesh's own processes, with which
its ports listen), ``mesh.key`` (its public half), ``client.key_secret`` (an ordinary client's pair) and
``allowed/NAME.key`` (public keys that may call, each with its roles). ``FOLDER/NAME`` (`--role ROLE --name NAME`) holds
the pair ``own.key_secret`` and the mesh's public key: all that its holder needs, and nothing secret of the mesh.
"""

import os
import re
import secrets
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import zmq.auth

from mesh.roles import ALL_ROLES, Holder, Role, roles_of

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
TAKEN = frozenset(("allowed", "mesh", "client"))  # names that the folder itself uses
ROLES = re.compile(r'^\s+roles\s*=\s*"([^"]*)"', re.MULTILINE)
UNSENT = re.compile(
    r"[\s\ud800-\udfff]"
)  # of a file's name: what parts a Holder in writing, and no text that can be sent
KEY_FILE_BYTES_MAX = 1 << 16
UNNAMED = frozenset((Role.CLIENT,))  # the roles of a key whose file names none: older folders


@dataclass(frozen=True, slots=True)
class AllowedKey:
    """One key that may call."""

    name: str
    public: bytes  # Z85
    roles: frozenset[Role]
    file: Path

    @property
    def holder(self) -> Holder:
        """Who calls with it."""
        return Holder(self.public.decode(), UNSENT.sub("_", self.name)[:64], self.roles)


def make_folder(folder: Path) -> None:
    """Writes a new mesh's folder. Raises: OSError (FileExistsError: it is there)."""
    folder.mkdir(mode=0o700, parents=True)
    (folder / "allowed").mkdir(mode=0o700)
    for name, roles in (("mesh", ALL_ROLES), ("client", UNNAMED)):
        _make_pair(folder, name, roles)
        _allow(folder, name, folder / f"{name}.key", roles)


def add_key(folder: Path, name: str, roles: Iterable[Role]) -> Path:
    """Makes `folder`/`name` for whoever has these roles, whose key the mesh lets in from now on. Returns that folder.

    Raises: ValueError (the name, or this is no folder of a mesh), OSError (FileExistsError: the name is taken).
    """
    _check_name(name)
    roles = frozenset(roles)
    for needed in (folder / "mesh.key", folder / "allowed"):
        if not needed.exists():
            raise ValueError(
                f"{folder} is no folder of a mesh's keys, as {needed} is not there: gearmesh keys {folder}"
            )
    if (folder / "allowed" / f"{name}.key").exists():
        raise FileExistsError(17, "there is a key of this name; revoke it first", str(folder / name))
    own = folder / name
    own.mkdir(mode=0o700)
    _make_pair(own, "own", roles)
    shutil.copyfile(folder / "mesh.key", own / "mesh.key")
    _allow(folder, name, own / "own.key", roles)
    return own


def revoke(folder: Path, name: str) -> None:
    """The mesh lets the key of this name in no more. Raises: ValueError (there is none), OSError."""
    found = folder / "allowed" / f"{name}.key"
    if NAME.fullmatch(name) is None or not found.exists():
        there = ", ".join(key.name for key in allowed(folder)[0]) or "none"
        raise ValueError(f"{folder / 'allowed'} has no key named {name!r}; there are: {there}")
    found.unlink()


def allowed(folder: Path) -> tuple[list[AllowedKey], list[str]]:
    """(keys that may call, sorted by name; files that are none, and why). Raises: OSError (no such folder)."""
    found, faults = [], []
    mesh = _public(folder / "mesh.key_secret") or _public(folder / "mesh.key")
    for entry in sorted(os.scandir(folder / "allowed"), key=lambda entry: entry.name):
        if not entry.name.endswith(".key"):
            continue
        file = Path(entry.path)
        try:
            found.append(_read_allowed(file, mesh))
        except (OSError, ValueError) as error:
            faults.append(f"{file}: {error}")
    return found, faults


def _read_allowed(file: Path, mesh: bytes | None) -> AllowedKey:
    """The key in the file. Where that names no roles the mesh's own key has all, and another one is a client's."""
    if file.stat().st_size > KEY_FILE_BYTES_MAX:
        raise ValueError("is too long for a key")
    public, _ = zmq.auth.load_certificate(file)
    if len(public) != 40:
        raise ValueError("holds no public key of 40 characters")
    named = ROLES.search(file.read_text())
    roles = roles_of(named[1]) if named is not None else ALL_ROLES if public == mesh else UNNAMED
    return AllowedKey(file.stem, public, roles, file)


def _public(file: Path) -> bytes | None:
    try:
        return zmq.auth.load_certificate(file)[0]
    except (OSError, ValueError):
        return None


def _make_pair(folder: Path, name: str, roles: frozenset[Role]) -> None:
    """Writes a new pair, whose secret half only this user can read: the folder is closed to others from its start."""
    _, secret = zmq.auth.create_certificates(folder, name, {"roles": ",".join(sorted(roles))})
    Path(secret).chmod(0o600)


def _allow(folder: Path, name: str, public: Path, roles: frozenset[Role]) -> None:
    """The public key is among those that may call, with these roles, as a whole from the first moment on."""
    key, _ = zmq.auth.load_certificate(public)
    temporary = folder / "allowed" / f"{name}.{secrets.token_hex(4)}.tmp"
    temporary.write_text(
        f'metadata\n    name = "{name}"\n    roles = "{",".join(sorted(roles))}"\n'
        f'curve\n    public-key = "{key.decode()}"\n'
    )
    os.replace(temporary, folder / "allowed" / f"{name}.key")


def _check_name(name: str) -> None:
    if NAME.fullmatch(name) is None or name in TAKEN:
        raise ValueError(
            f"--name {name!r}: a name has up to 64 letters, digits, '_', '.' and '-', begins with a letter or digit, "
            f"and is none of {', '.join(sorted(TAKEN))}"
        )
