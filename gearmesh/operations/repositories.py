"""Whether a model repository is the broker's, which is served, or another one."""

import shlex
import socket
from pathlib import Path

from frontend.admin.operator import NoBroker, Operator
from gpu_worker.packages.package import Package
from mesh import wire
from mesh.errors import GearmeshError
from mesh.process.ids import host_id
from mesh.process.repository import versions_in
from mesh.process.settings import Settings

LISTENS_WITHIN_S = 1.0  # time for a broker to answer where the command also works without one


def ask_broker(settings: Settings) -> wire.CatalogueReply | None:
    """The catalogue of the settings' broker; None if there is none, at once if nobody listens."""
    address = (settings.broker_host or settings.host, settings.broker_port)
    try:
        socket.create_connection(address, LISTENS_WITHIN_S).close()
        with Operator(settings) as operator:
            return operator.catalogue()
    except (OSError, NoBroker, GearmeshError):  # TimeoutError is an OSError
        return None


def is_seen(told: wire.CatalogueReply) -> bool:
    """Whether the broker's repository can be reached here: it is on this machine, or shared under the same name."""
    try:
        inode = Path(told.repository).stat().st_ino
    except OSError:
        inode = 0
    return inode == told.inode and (inode != 0 or told.host == host_id())


def is_the_broker_s(repository: Path, told: wire.CatalogueReply) -> bool:
    """Whether this folder is the broker's repository."""
    return repository.resolve() == Path(told.repository) and is_seen(told)


def known_of(told: wire.CatalogueReply, name: str) -> wire.KnownModel | None:
    """What the broker knows of a model; None if it never existed."""
    return next((model for model in told.models if model.name == name), None)


def command_for(package: Package, repository: Path, told: wire.CatalogueReply | None) -> str:
    """The command that serves a version written into a repository, run from the working folder."""
    folder = repository / package.folder.parent.name
    number = package.folder.name
    newest = max(versions_in(folder), key=int, default=number)
    if told is not None and is_the_broker_s(repository, told):
        what = folder.name
    else:
        what = str(folder) if folder.parent != Path() else f"./{folder}"  # with a slash it is read as a folder
    return shlex.join(["gearmesh", "deploy", what, *([] if number == newest else ["--version", number])])
