"""broker/store.py: the catalogue in a real SQLite file."""

import contextlib
import errno
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from broker.core.catalogue import Catalogue
from broker.store import SCHEMA_VERSION, CatalogueStore, StoreError
from mesh import wire
from tests.broker.full_disks import full_disk
from tests.disks import refuse

SPEC = wire.ModelSpec(
    inputs=(wire.TensorSpec(name="x", dtype="float32", shape=(-1, 4)),),
    outputs=(wire.TensorSpec(name="y", dtype="float32", shape=(-1, 2)),),
    batch_max=8,
    slo_ms=12.5,
    labels=("cat", "dog"),
    batch_sizes=(1, 8),
)
Opened = tuple[CatalogueStore, Catalogue]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[[], Opened]]:
    """Opens the same file repeatedly; each opening, and the end, first closes the one before."""
    stores: list[CatalogueStore] = []

    def open_again() -> Opened:
        for store in stores:
            store.close()
        stores.append(CatalogueStore(tmp_path / "very" / "deep" / "catalogue.sqlite"))
        return stores[-1], stores[-1].open()

    yield open_again
    for store in stores:
        store.close()


def test_a_new_file_holds_an_empty_catalogue_and_its_folder_is_made(
    opened: Callable[[], Opened], tmp_path: Path
) -> None:
    _, catalogue = opened()
    assert catalogue == Catalogue()
    assert (tmp_path / "very" / "deep" / "catalogue.sqlite").is_file()


def test_everything_is_there_again_when_the_file_is_opened_again(opened: Callable[[], Opened]) -> None:
    store, catalogue = opened()
    catalogue.scan({"m": ["1", "2"], "n": ["7"]})
    catalogue.reported(wire.PrepareReport(ref="m:2", ok=True, spec=SPEC, content="A"))
    catalogue.reported(wire.PrepareReport(ref="n:7", ok=False, faults=("no graph",)))
    catalogue.claim(1, "f", "B", None)
    catalogue.deploy(("ann", 1), "m", "1", {"m": ["1", "2"]})
    catalogue.put_app(1, {"name": "a", "models": ["m"], "slo_ms": 2.5}, create=True)
    store.save(catalogue)
    _, again = opened()
    assert again.models == catalogue.models
    assert again.apps == catalogue.apps
    assert (again.changed_models, again.apps.changed) == (set(), set())
    again.check()


def test_a_catalogue_of_a_release_that_kept_no_contents_opens(opened: Callable[[], Opened]) -> None:
    store, _ = opened()
    store.close()
    old = {"name": "m", "current": "1", "versions": ["1", "2"], "history": ["2"], "fault": "no graph"}
    with contextlib.closing(sqlite3.connect(store.file, isolation_level=None)) as database:
        database.execute("INSERT INTO models VALUES (?, ?)", ("m", msgspec.msgpack.encode(old)))
    _, again = opened()
    again.check()
    model = again.models["m"]
    assert (model.current, model.contents, model.tries, model.unserved) == ("1", {}, 0, "")


def test_a_saved_catalogue_has_nothing_left_to_save(opened: Callable[[], Opened]) -> None:
    store, catalogue = opened()
    catalogue.scan({"m": ["1"]})
    catalogue.put_app(1, {"name": "a", "models": ["m"]}, create=True)
    store.save(catalogue)
    assert (catalogue.changed_models, catalogue.apps.changed) == (set(), set())
    store.save(catalogue)


def test_what_was_not_saved_is_as_it_was(opened: Callable[[], Opened]) -> None:
    store, catalogue = opened()
    catalogue.scan({"m": ["1"]})
    store.save(catalogue)
    catalogue.reported(wire.PrepareReport(ref="m:1", ok=True, spec=SPEC))
    _, again = opened()
    assert (again.models["m"].current, again.models["m"].target) == (None, "1")


def test_a_deleted_application_stays_deleted(opened: Callable[[], Opened]) -> None:
    store, catalogue = opened()
    catalogue.scan({"m": ["1"]})
    for name in ("a", "b"):
        catalogue.put_app(1, {"name": name, "models": ["m"]}, create=True)
    store.save(catalogue)
    catalogue.drop_app(2, "a")
    store.save(catalogue)
    _, again = opened()
    assert list(again.apps.records) == ["b"]


def test_no_revision_is_given_twice_over_all_lives_of_the_file(opened: Callable[[], Opened]) -> None:
    store, catalogue = opened()
    catalogue.scan({"m": ["1"]})
    revisions = []
    for _ in range(3):
        revisions.append(catalogue.put_app(1, {"name": "a", "models": ["m"]}, create=True).revision)
        catalogue.drop_app(2, "a")
        store.save(catalogue)
        store, catalogue = opened()
    assert revisions == [1, 2, 3]


def test_revisions_go_on_from_those_of_a_file_that_did_not_count_them(opened: Callable[[], Opened]) -> None:
    store, catalogue = opened()
    catalogue.scan({"m": ["1"]})
    for create in (True, False):
        catalogue.put_app(1, {"name": "a", "models": ["m"]}, create=create)
    store.save(catalogue)
    store.close()
    with contextlib.closing(sqlite3.connect(store.file, isolation_level=None)) as db:
        db.execute("DELETE FROM counters")
    _, again = opened()
    assert again.put_app(1, {"name": "b", "models": ["m"]}, create=True).revision == 3


@pytest.mark.parametrize(
    "definition",
    [
        {"default": [{"name": "y", "dtype": "float32", "shape": [1, 2], "data": b"\x00\x01\xff\xfe\x00\x00\x80\x3f"}]},
        {"policy_args": {"eta": 0.1, "arms": [1, 2], "nested": {"deep": None}, "on": True}},
        {"note": "naïve ✓"},
    ],
)
def test_an_applications_definition_comes_back_as_the_client_sent_it(
    opened: Callable[[], Opened], definition: dict[str, Any]
) -> None:
    store, catalogue = opened()
    catalogue.scan({"m": ["1"]})
    definition = {"name": "a", "models": ["m"], **definition}
    assert catalogue.put_app(1, definition, create=True).ok
    store.save(catalogue)
    _, again = opened()
    assert again.apps.records["a"].definition == definition


def test_what_was_reserved_is_known_to_the_next_life_of_the_file(opened: Callable[[], Opened]) -> None:
    assert opened()[0].reserved() == 0
    for epoch in (7, 1 << 62):
        store, _ = opened()
        store.reserve(epoch)
        assert opened()[0].reserved() == epoch


def test_a_second_broker_on_the_same_catalogue_is_refused(opened: Callable[[], Opened]) -> None:
    store, catalogue = opened()
    second = CatalogueStore(store.file)
    with pytest.raises(StoreError, match="GEARMESH_DATA_DIR"):
        second.open()
    second.close()
    catalogue.scan({"m": ["1"]})
    store.save(catalogue)  # the first store still works
    assert opened()[1].models.keys() == {"m"}


def test_a_catalogue_that_was_closed_can_be_opened_by_another(opened: Callable[[], Opened]) -> None:
    store, _ = opened()
    store.close()
    store.close()
    second = CatalogueStore(store.file)
    assert second.open() == Catalogue()
    second.close()


def other_release(file: Path) -> None:
    with contextlib.closing(sqlite3.connect(file)) as db:
        db.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
        db.execute("CREATE TABLE theirs (x)")
        db.commit()


def test_the_file_of_another_release_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "catalogue.sqlite"
    other_release(file)
    with pytest.raises(StoreError, match=rf"\b{SCHEMA_VERSION + 1}\b.*\b{SCHEMA_VERSION}\b"):
        CatalogueStore(file).open()
    with contextlib.closing(sqlite3.connect(file, timeout=0)) as db:
        assert db.execute("SELECT name FROM sqlite_master").fetchall() == [("theirs",)]


def test_a_file_that_was_refused_is_let_go_at_once(tmp_path: Path) -> None:
    file = tmp_path / "catalogue.sqlite"
    other_release(file)
    with pytest.raises(StoreError) as refused:
        CatalogueStore(file).open()
    with contextlib.closing(sqlite3.connect(file, timeout=0)) as db:
        db.execute("BEGIN EXCLUSIVE")  # raises while another connection holds the file
    assert str(SCHEMA_VERSION + 1) in str(refused.value)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"catalogue\.sqlite"):
        CatalogueStore(tmp_path / "file" / "catalogue.sqlite").open()


def test_a_change_that_finds_the_disk_full_is_written_when_there_is_room(opened: Callable[[], Opened]) -> None:
    store, catalogue = opened()
    many = {f"m{number}": ["1"] for number in range(500)}
    catalogue.scan(many)
    with full_disk(store.file.parent):
        for _ in range(2):
            with pytest.raises(StoreError, match=r"catalogue\.sqlite"):
                store.save(catalogue)
    store.save(catalogue)
    assert opened()[1].models.keys() == many.keys()


def test_a_record_that_the_file_does_not_take_is_written_with_all_others_once_it_does(
    opened: Callable[[], Opened],
) -> None:
    store, _ = opened()
    store.close()
    with contextlib.closing(sqlite3.connect(store.file, isolation_level=None)) as database:
        database.execute(
            "CREATE TRIGGER one BEFORE INSERT ON models "
            "WHEN NEW.name = 'm5' AND instr(NEW.record, CAST('no graph' AS BLOB)) = 0 "
            "BEGIN SELECT RAISE(FAIL, 'not this one'); END"
        )
    store, catalogue = opened()
    many = {f"m{number}": ["1"] for number in range(10)}
    catalogue.scan(many)
    for _ in range(2):
        with pytest.raises(StoreError, match=r"catalogue\.sqlite"):
            store.save(catalogue)
    catalogue.reported(wire.PrepareReport(ref="m5:1", ok=False, faults=("no graph",)))
    store.save(catalogue)
    assert opened()[1].models.keys() == many.keys()


# -- disks that take nothing ------------------------------------------------------------------------------------------


def refused_by_sqlite(monkeypatch: pytest.MonkeyPatch, file: Path, code: int) -> None:
    """SQLite refuses this file, as it does one on a file system that takes no changes."""
    usual = sqlite3.connect

    def connect(path: Path, *more: Any, **named: Any) -> sqlite3.Connection:
        if path != file:
            return usual(path, *more, **named)
        error = sqlite3.OperationalError("attempt to write a readonly database")
        error.sqlite_errorcode = code
        raise error

    monkeypatch.setattr(sqlite3, "connect", connect)


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EIO], ids=os.strerror)
@pytest.mark.parametrize("code", [sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_FULL])
def test_a_catalogue_on_a_disk_that_takes_nothing_is_served_and_says_that_nothing_is_saved(
    opened: Callable[[], Opened], number: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, catalogue = opened()
    catalogue.scan({"m": ["1"]})
    store.save(catalogue)
    store.reserve(77)
    files = {name: (store.file.parent / name).read_bytes() for name in ("catalogue.sqlite", "catalogue.sqlite-wal")}
    assert b"m" in files["catalogue.sqlite-wal"]  # where the last changes are
    store.close()
    for name, content in files.items():  # as after a crash
        (store.file.parent / name).write_bytes(content)
    refused_by_sqlite(monkeypatch, store.file, code)
    refuse(monkeypatch, store.file.parent, "open", number)
    again, found = opened()
    assert (found.models.keys(), again.reserved()) == ({"m"}, 77)
    assert str(store.file) in again.fault
    assert os.strerror(number) in again.fault
    assert "GEARMESH_DATA_DIR" in again.fault
    found.scan({"n": ["1"]})
    for change in (lambda: again.save(found), lambda: again.reserve(88)):
        with pytest.raises(StoreError) as raised:
            change()
        assert str(raised.value) == again.fault
    assert found.changed_models == {"n"}  # still to be saved
    assert {name: (store.file.parent / name).read_bytes() for name in files} == files


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC], ids=os.strerror)
def test_a_folder_that_the_disk_does_not_take_leaves_the_broker_with_an_empty_catalogue(
    opened: Callable[[], Opened], number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, tmp_path, "mkdir", number)
    store, catalogue = opened()
    assert catalogue == Catalogue()
    assert os.strerror(number) in store.fault


def test_a_folder_that_this_user_may_not_write_is_a_wrong_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CatalogueStore(tmp_path / "catalogue.sqlite")
    refused_by_sqlite(monkeypatch, store.file, sqlite3.SQLITE_CANTOPEN)
    refuse(monkeypatch, tmp_path, "open", errno.EACCES)
    with pytest.raises(StoreError, match=r"right to write.*GEARMESH_DATA_DIR"):
        store.open()


def test_a_catalogue_on_a_full_disk_opens_without_a_write_and_saves_once_there_is_room(
    opened: Callable[[], Opened],
) -> None:
    store, catalogue = opened()
    catalogue.scan({"m": ["1"]})
    store.save(catalogue)
    store.close()
    with full_disk(store.file.parent):
        again, found = opened()
        assert (found.models.keys(), again.fault) == ({"m"}, "")
        found.scan({f"m{number}": ["1"] for number in range(500)})
        with pytest.raises(StoreError) as raised:
            again.save(found)
        assert str(store.file) in str(raised.value)
    again.save(found)
    assert len(opened()[1].models) == 501


@pytest.mark.parametrize("by_itself", [False, True], ids=["with the next change", "without a change"])
@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC], ids=os.strerror)
def test_a_disk_that_took_nothing_at_the_start_gets_everything_once_it_takes_something(
    opened: Callable[[], Opened], number: int, by_itself: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, catalogue = opened()
    catalogue.scan({"m": ["1"]})
    catalogue.put_app(1, {"name": "a", "models": ["m"]}, create=True)
    store.save(catalogue)
    store.close()
    with monkeypatch.context() as full:
        refused_by_sqlite(full, store.file, sqlite3.SQLITE_FULL)
        refuse(full, store.file.parent, "open", number)
        again, found = opened()
        found.scan({"n": ["1"]})
        found.drop_app(2, "a")
        assert not again.retry(found)
        with pytest.raises(StoreError):
            again.save(found)
        with pytest.raises(StoreError):
            again.reserve(99)
    if by_itself:
        assert again.retry(found)
    else:
        found.scan({"o": ["1"]})
        again.save(found)
    assert again.fault == ""
    assert (found.changed_models, found.apps.changed) == (set(), set())
    last, known = opened()
    assert (known.models, known.apps, last.reserved()) == (found.models, found.apps, 99)


def test_a_disk_that_takes_something_again_is_not_written_to_while_another_broker_has_the_file(
    opened: Callable[[], Opened], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened()
    with monkeypatch.context() as full:
        file = opened()[0].file
        refused_by_sqlite(full, file, sqlite3.SQLITE_FULL)
        refuse(full, file.parent, "open", errno.ENOSPC)
        store, catalogue = opened()
        catalogue.scan({"m": ["1"]})
    other = CatalogueStore(file)
    assert other.open() == Catalogue()
    assert not store.retry(catalogue)
    other.close()
    assert store.retry(catalogue)
