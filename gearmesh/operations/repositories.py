"""Whose model repository a folder is: the broker's, which is served, or another one."""

import shlex
import socket
from pathlib import Path

from frontend.admin.operator import NoBroker, Operator
from gpu_worker.packages.package import Package
from mesh import wire
from mesh.errors import GearmeshError
from mesh.process.repository import versions_in
from mesh.process.runtime import host_id
from mesh.process.settings import Settings

LISTENS_WITHIN_S = 1.0  # a broker that is there, for what can be done without one


def ask_broker(settings: Settings) -> wire.CatalogueReply | None:
    """What the broker of the settings says, or nothing; at once where nobody listens."""
    address = (settings.broker_host or settings.host, settings.broker_port)
    try:
        socket.create_connection(address, LISTENS_WITHIN_S).close()
        with Operator(settings) as operator:
            return operator.catalogue()
    except (OSError, NoBroker, GearmeshError):  # TimeoutError is an OSError
        return None


def is_seen(told: wire.CatalogueReply) -> bool:
    """The broker's repository is a folder of this machine, or one that is shared with it: the same under its name."""
    try:
        inode = Path(told.repository).stat().st_ino
    except OSError:
        inode = 0
    return inode == told.inode and (inode != 0 or told.host == host_id())


def is_the_broker_s(repository: Path, told: wire.CatalogueReply) -> bool:
    """This folder is where the broker looks for packages."""
    return repository.resolve() == Path(told.repository) and is_seen(told)


def known_of(told: wire.CatalogueReply, name: str) -> wire.KnownModel | None:
    """What is known of a model, if it was ever there."""
    return next((model for model in told.models if model.name == name), None)


def command_for(package: Package, repository: Path, told: wire.CatalogueReply | None) -> str:
    """What serves a version that was written into a repository, from the working folder."""
    folder = repository / package.folder.parent.name
    number = package.folder.name
    newest = max(versions_in(folder), key=int, default=number)
    if told is not None and is_the_broker_s(repository, told):
        what = folder.name
    else:
        what = str(folder) if folder.parent != Path() else f"./{folder}"  # with a slash it is a folder's name
    return shlex.join(["gearmesh", "deploy", what, *([] if number == newest else ["--version", number])])
