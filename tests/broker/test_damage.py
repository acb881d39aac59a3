"""broker/store.py: a catalogue file that is damaged costs nothing where its copy is whole, and is never deleted."""

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.core.catalogue import Catalogue
from broker.store import CatalogueStore
from mesh import wire

Damages = Callable[[Path], None]


def overwritten(file: Path) -> None:
    """It is no database any more."""
    file.write_bytes(b"not a database, " * 100)


def cut(file: Path) -> None:
    """A crash has left nothing of it."""
    file.write_bytes(b"")


def torn(file: Path) -> None:
    """Its pages but for the first are noise."""
    content = bytearray(file.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    file.write_bytes(content)


def bad_record(table: str) -> Damages:
    """One record cannot be read."""

    def damage(file: Path) -> None:
        with contextlib.closing(sqlite3.connect(file)) as db:
            db.execute(f"INSERT OR REPLACE INTO {table} VALUES ('b', ?)", (b"\xc1{",))
            db.commit()

    return damage


DAMAGES = {
    "overwritten": overwritten,
    "cut": cut,
    "torn": torn,
    "bad model": bad_record("models"),
    "bad app": bad_record("apps"),
}
every_damage = pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)


@pytest.fixture
def saved(tmp_path: Path) -> CatalogueStore:
    """A catalogue that was saved, copied and closed: model m rolled back from 2 to 1, b undeployed, applications."""
    store = CatalogueStore(tmp_path / "catalogue.sqlite")
    catalogue = store.open()
    catalogue.scan({"m": ["1", "2"], "b": ["1"]})
    catalogue.reported(wire.PrepareReport(ref="m:2", ok=True, content="A"))
    catalogue.deploy(("ann", 1), "m", "1", {"m": ["1", "2"]})
    catalogue.reported(wire.PrepareReport(ref="m:1", ok=True, content="B"))
    catalogue.undeploy(("ann", 2), "b")
    for name in ("a", "b"):
        catalogue.put_app(1, {"name": name, "models": ["m"]}, create=True)
    store.reserve(77)
    store.save(catalogue)
    store.write_copy(catalogue)
    store.close()
    return store


def opened(file: Path) -> tuple[CatalogueStore, Catalogue]:
    """What a broker that is started now has; closed again."""
    store = CatalogueStore(file)
    with contextlib.closing(store):
        catalogue = store.open()
        assert store.reserved() in (0, 77)
    return store, catalogue


@every_damage
def test_nothing_is_lost_where_the_copy_is_whole(saved: CatalogueStore, damage: Damages) -> None:
    before = opened(saved.file)[1]
    damage(saved.file)
    damaged = saved.file.read_bytes()
    store, found = opened(saved.file)
    assert (found.models, found.apps) == (before.models, before.apps)
    assert found.models["m"].current == "1"  # what was rolled back from is not deployed again
    assert not found.models["b"].deployed
    found.check()
    assert store.damage is not None
    assert (store.damage.copied, store.damage.lost, store.damage.models, store.damage.apps) == (True, (), 2, 2)
    assert damage is cut or store.damage.aside.read_bytes() == damaged  # of an empty file there is nothing to keep
    again, _ = opened(saved.file)
    assert again.damage is None  # the new file is sound, and the copy served its turn


@every_damage
def test_without_a_copy_each_record_that_is_whole_is_kept_and_the_others_are_named(
    saved: CatalogueStore, damage: Damages
) -> None:
    saved.copy.unlink()
    whole = opened(saved.file)[1]
    damage(saved.file)
    store, found = opened(saved.file)
    if damage is cut:  # nobody knows that there was anything
        assert (found, store.damage) == (Catalogue(), None)
        return
    assert store.damage is not None
    assert not store.damage.copied
    assert store.damage.aside.exists()
    for name, model in found.models.items():
        assert model == whole.models[name]
    for name, app in found.apps.records.items():
        assert app == whole.apps.records[name]
    if damage is DAMAGES["bad model"]:
        assert (store.damage.lost, set(found.models), set(found.apps.records)) == (("b",), {"m"}, {"a", "b"})
    if damage is DAMAGES["bad app"]:
        assert (store.damage.lost, set(found.models), set(found.apps.records)) == (("b",), {"m", "b"}, {"a"})


@every_damage
def test_a_copy_that_is_damaged_is_not_believed(saved: CatalogueStore, damage: Damages) -> None:
    content = bytearray(saved.copy.read_bytes())
    content[len(content) // 2] ^= 1
    saved.copy.write_bytes(content)
    damage(saved.file)
    store, _ = opened(saved.file)
    assert store.damage is None or not store.damage.copied


def test_files_that_were_set_aside_stay_each_under_a_name_of_its_own(saved: CatalogueStore) -> None:
    asides = []
    for number in range(3):
        saved.file.write_bytes(b"number %d, " % number * 100)
        store, found = opened(saved.file)
        assert store.damage is not None
        asides.append((store.damage.aside, b"number %d, " % number * 100))
        assert found.models.keys() == {"m", "b"}
    assert len({aside for aside, _ in asides}) == 3
    assert all(aside.read_bytes() == content for aside, content in asides)


def test_a_file_that_was_moved_away_is_forgotten_whatever_the_copy_says(saved: CatalogueStore) -> None:
    saved.file.unlink()
    store = CatalogueStore(saved.file)
    with contextlib.closing(store):
        catalogue = store.open()
        assert (catalogue, store.damage) == (Catalogue(), None)
        store.write_copy(catalogue)
    overwritten(saved.file)
    assert opened(saved.file)[1] == Catalogue()


def test_a_copy_holds_nothing_that_is_not_saved(saved: CatalogueStore) -> None:
    store = CatalogueStore(saved.file)
    with contextlib.closing(store):
        catalogue = store.open()
        catalogue.scan({"new": ["1"]})
        store.write_copy(catalogue)
    overwritten(saved.file)
    assert "new" not in opened(saved.file)[1].models
