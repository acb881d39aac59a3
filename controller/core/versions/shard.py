"""What the routing table says of one controller's shard: its epoch, and the versions that it is to have ready. Pure."""

from dataclasses import dataclass

from controller.core.versions.preparation import Terms, terms_of
from mesh import wire


@dataclass(frozen=True, slots=True)
class Shard:
    """One controller's part of a table."""

    epoch: int
    terms: dict[str, Terms]  # {ref: what the catalogue says}, of the versions that are to be ready
    contained: list[str]  # those of them that containers serve


def shard_of(table: wire.Table, controller: str) -> Shard | None:
    """The controller's shard; None if the broker has just started, and has not heard of the controller yet."""
    epoch = table.shards.get(controller)
    if epoch is None:
        return None
    terms, contained = {}, []
    for model in table.models:
        for version in (model.current, model.target) if model.owner == controller else ():
            if version is not None:
                ref = wire.ref_of(model.name, version)
                terms[ref] = terms_of(model, version)
                contained += [ref] if model.container else []
    return Shard(epoch, terms, contained)
