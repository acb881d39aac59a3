"""mesh/process/compiled.py: compiled modules are used if they were made from the files that are there, else none is."""

import os
from pathlib import Path

import pytest

from mesh.process import compiled
from mesh.process.compiled import MANIFEST, PURE, REASON, SUFFIX, CompiledFinder, Form, Manifest, Why

FILES = {"mesh/a.py": b"A = 1\n", "mesh/b.py": b"B = 2\n"}


class Checkout:
    """Files, a set that was made from them, and a finder that is asked about both."""

    def __init__(self, folder: Path) -> None:
        self.root, self.store, self.installed = folder / "root", folder / "store", folder / "root" / "mesh" / "compiled"
        for path, content in FILES.items():
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).write_bytes(content)
        self.manifest = Manifest(
            SUFFIX, {path: compiled.hash_of(content) for path, content in FILES.items()}, {"mesh.a": "mesh/a.py"}, {}
        )

    def finder(self) -> CompiledFinder:
        """One that has looked at nothing yet."""
        return CompiledFinder(str(self.root), str(self.installed), str(self.store))

    def write(self, folder: Path, suffix: str = SUFFIX) -> None:
        """A set in the folder."""
        folder.mkdir(parents=True)
        (folder / MANIFEST).write_text(self.manifest._replace(suffix=suffix).write())

    def note(self, told: str) -> None:
        """What this checkout uses."""
        self.store.mkdir(parents=True, exist_ok=True)
        Path(compiled.pointer(str(self.root), str(self.store))).write_text(f"{told}\n")

    def finds(self) -> bool:
        """Whether a finder hands out the compiled form of mesh.a."""
        return self.finder().find_spec("mesh.a", [str(self.root / "mesh")]) is not None


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    """With a set in its store, which is noted to be the one that it uses."""
    monkeypatch.delenv(PURE, raising=False)
    made = Checkout(tmp_path)
    made.write(made.store / "d1")
    made.note("d1")
    return made


def test_a_set_that_was_made_from_the_files_that_are_there_is_used(checkout: Checkout) -> None:
    assert checkout.finder().form() == Form(True, Why.MATCHES)
    assert checkout.finds()


@pytest.mark.parametrize("path", FILES)
@pytest.mark.parametrize("content", [b"A = 3\n", b"", None])
def test_no_module_of_a_set_is_used_when_any_file_was_edited_emptied_or_removed(
    checkout: Checkout, path: str, content: bytes | None
) -> None:
    if content is None:
        (checkout.root / path).unlink()
    else:
        (checkout.root / path).write_bytes(content)
    assert checkout.finder().form() == Form(False, Why.STALE, (path,))
    assert not checkout.finds()


def test_a_file_that_was_saved_anew_with_the_same_content_changes_nothing(checkout: Checkout) -> None:
    file = checkout.root / "mesh/a.py"
    file.write_bytes(FILES["mesh/a.py"])
    os.utime(file, (1, 1))
    assert checkout.finds()


def test_a_set_for_another_python_or_machine_is_not_used(checkout: Checkout) -> None:
    checkout.write(checkout.store / "d2", ".cpython-27-pdp11.so")
    checkout.note("d2")
    assert checkout.finder().form() == Form(False, Why.STALE)


@pytest.mark.parametrize("asked", ["1", "true"])
def test_the_environment_can_ask_for_the_interpreted_form(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    monkeypatch.setenv(PURE, asked)
    assert checkout.finder().form() == Form(False, Why.ASKED)
    assert not checkout.finds()


@pytest.mark.parametrize("asked", ["0", ""])
def test_the_environment_that_does_not_ask_changes_nothing(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    monkeypatch.setenv(PURE, asked)
    assert checkout.finds()


@pytest.mark.parametrize("why", [Why.NO_COMPILER, Why.FAILED, Why.ASKED])
def test_why_nothing_was_compiled_is_known_later(checkout: Checkout, why: Why) -> None:
    checkout.note(why)
    assert checkout.finder().form() == Form(False, why)


def test_where_nothing_was_set_up_or_the_set_is_gone_all_is_interpreted(checkout: Checkout) -> None:
    checkout.note("gone")
    assert checkout.finder().form() == Form(False, Why.NOT_BUILT)
    Path(compiled.pointer(str(checkout.root), str(checkout.store))).unlink()
    assert checkout.finder().form() == Form(False, Why.NOT_BUILT)


def test_the_set_of_a_wheel_comes_first(checkout: Checkout) -> None:
    checkout.note("gone")
    checkout.write(checkout.installed)
    assert checkout.finds()


def test_a_package_of_the_same_name_that_lies_elsewhere_is_not_ours(checkout: Checkout, tmp_path: Path) -> None:
    assert checkout.finder().find_spec("mesh.a", [str(tmp_path / "mesh")]) is None


@pytest.mark.parametrize("name", ["json", "mesh", "mesh.b", "frontend.client", "a"])
def test_what_is_not_in_the_set_is_found_by_others(checkout: Checkout, name: str) -> None:
    assert checkout.finder().find_spec(name, [str(checkout.root / "mesh")]) is None


@pytest.mark.parametrize("noted_by", ["link", "place"])
def test_a_checkout_that_is_reached_through_a_symbolic_link_uses_its_set(
    checkout: Checkout, tmp_path: Path, noted_by: str
) -> None:
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    place, linked = checkout.root, tmp_path / "link" / "root"
    checkout.root = linked if noted_by == "link" else place
    checkout.note("d2")
    checkout.write(checkout.store / "d2")
    checkout.root = place if noted_by == "link" else linked
    assert checkout.finder().form() == Form(True, Why.MATCHES)
    for root in (place, linked):  # whichever of the two paths Python found the package by
        assert checkout.finder().find_spec("mesh.a", [str(root / "mesh")]) is not None


@pytest.mark.parametrize("left", ["folder", "file"])
def test_what_an_interrupted_set_up_has_left_of_a_set_stops_no_import(checkout: Checkout, left: str) -> None:
    checkout.note("d2")
    if left == "folder":
        (checkout.store / "d2").mkdir()
    else:
        (checkout.store / "d2").touch()
    assert checkout.finder().form() == Form(False, Why.NOT_BUILT)
    assert not checkout.finds()


@pytest.mark.parametrize("why", [Why.NO_COMPILER, Why.FAILED])
def test_a_wheel_says_why_nothing_was_compiled_when_it_was_built(checkout: Checkout, why: Why) -> None:
    checkout.installed.mkdir(parents=True)
    (checkout.installed / REASON).write_text(f"{why}\n")
    assert checkout.finder().form() == Form(False, why)


def test_what_follows_the_first_line_of_a_note_is_for_the_next_set_up(checkout: Checkout) -> None:
    checkout.note(f"d1\n{checkout.root}")
    assert checkout.finds()
    checkout.note(f"{Why.FAILED}\n{checkout.root}")
    assert checkout.finder().form() == Form(False, Why.FAILED)


def test_two_checkouts_do_not_share_what_they_use(checkout: Checkout, tmp_path: Path) -> None:
    other = Checkout(tmp_path / "other")
    other.store = checkout.store
    assert other.finder().form() == Form(False, Why.NOT_BUILT)


def test_a_manifest_reads_as_it_was_written() -> None:
    made = Manifest(SUFFIX, {"mesh/a b.py": "00ff"}, {"mesh.a": "mesh/a b.py"}, {"mesh.net._channel": "_channel.so"})
    assert Manifest.read(made.write()) == made


def test_entries_of_modules_whose_names_are_alike_differ() -> None:
    names = ["a.b_c", "a_b.c", "a_2b_1c", "a.b.c", "a_b_c"]
    assert len({compiled.entry(name) for name in names}) == len(names)
