"""The compiled sets of checkouts: each is made once, used while its sources are unchanged, and gone in the end.

They lie in `.venv/share/gearmesh/compiled/`, the store, each in a folder named by the digest of all that it was made
from; so checkouts that share a `.venv` share equal sets, and nothing is done twice. A note for each checkout says which
one it uses, or why it has none. `scripts/setup` runs this:

    python -m scripts.compiled_sets                  # compiles what has changed; tells, and exits with 0, if it cannot
    GEARMESH_PURE=0 python -m scripts.compiled_sets  # exits with 1 if it cannot
    GEARMESH_PURE=1 python -m scripts.compiled_sets  # compiles nothing
"""

import argparse
import contextlib
import fcntl
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from mesh.process import compiled
from mesh.process.compiled import MANIFEST, STORE, Manifest, Why, asked_for_pure
from scripts.compiling import ROOT, SCRATCH, CannotCompile, build, digest, insisted, is_whole, manifest_of, scratch_in

SETS_MAX = 12  # that are kept in one store; the oldest go
OBJECTS_MAX = 1000  # likewise
BUILD_S_MAX = 3600.0  # what was used in this time may be in use
LOCK = "lock"  # in a store: whoever writes notes, or removes sets, holds it


def set_up(root: Path = ROOT, store: Path = Path(STORE)) -> Path | None:
    """The checkout at `root` uses a set made from its sources, which is returned, or is noted to have none, and why.

    Raises: CannotCompile, after it is noted.
    """
    try:
        store.mkdir(parents=True, exist_ok=True)
        if not asked_for_pure():
            return _set_up(root, store)
        with _alone(store / LOCK):  # what was compiled before stays: it is used where it matches, and nobody asks again
            if not os.path.exists(compiled.pointer(str(root), str(store))):
                _note(root, store, Why.ASKED)
        return None
    except OSError as error:
        raise CannotCompile(Why.FAILED, str(error)) from error


def _set_up(root: Path, store: Path) -> Path:
    manifest = manifest_of(root)
    target = store / digest(root, manifest)
    try:
        with _alone(store / f".{target.name}.lock"):
            while not _taken(root, store, target, manifest):
                print(f"compiling {len(manifest.modules)} modules (minutes)", flush=True)
                began = time.monotonic()
                build(root, target, manifest, store / "objects")
                print(f"compiled in {time.monotonic() - began:.0f} s", flush=True)
    except CannotCompile as error:
        with _alone(store / LOCK):
            _note(root, store, error.why)
        raise
    return target


def _taken(root: Path, store: Path, target: Path, manifest: Manifest) -> bool:
    """Whether the set is there. If so, the checkout uses it, and nobody removes it in between."""
    with _alone(store / LOCK):
        if not is_whole(target, manifest):
            return False
        os.utime(target)  # in use: not the oldest
        _note(root, store, target.name)
        with contextlib.suppress(OSError):  # another time
            _tidy(store)
        return True


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Nobody else does the same meanwhile."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _note(root: Path, store: Path, told: str) -> None:
    """Whoever starts from now on reads it; whole. The caller holds the store's lock."""
    scratch = store / ".note"  # one name: what a killed process has left is written over
    scratch.write_bytes(os.fsencode(f"{told}\n{os.path.realpath(root)}\n"))
    scratch.replace(compiled.pointer(str(root), str(store)))


def _tidy(store: Path) -> None:
    """Gone: notes of checkouts that are gone, the oldest sets that none uses, the oldest objects, and what was left.

    The caller holds the store's lock.
    """
    used = _used(store)
    sets = sorted((found.parent for found in store.glob(f"*/{MANIFEST}")), key=_used_at)
    with scratch_in(store) as away:  # from where it lies a set goes as a whole, whatever ends this
        for folder in [found for found in sets if found.name not in used][: max(0, len(sets) - SETS_MAX)]:
            folder.rename(away / folder.name)
    ages = sorted(((_used_at(file), file) for file in store.glob("objects/*.o")), reverse=True)
    for file in [file for _, file in ages[OBJECTS_MAX:]]:
        _remove_old(file)  # an object of the last hour may be one that a build is still to link
    for left in (*store.glob(f"{SCRATCH}*"), *store.glob("of-*.*")):  # by builds, and notes, that were killed
        _remove_old(left)
    for lock in store.glob(".*.lock"):
        if not (store / lock.name[1:].removesuffix(".lock")).exists():
            _remove_old(lock)


def _used(store: Path) -> set[str]:
    """Names of the sets that checkouts use. Notes of checkouts that are not there any more are gone afterwards.

    Earlier versions noted no root: nobody knows whether such a checkout is there, so it keeps no set, and its note goes
    when its set has gone.
    """
    used = set()
    for file in store.glob("of-*"):
        if "." in file.name:  # a scratch of earlier versions
            continue
        told, _, root = os.fsdecode(file.read_bytes()).rstrip("\n").partition("\n")
        if root and os.path.isdir(os.path.join(root, "mesh")):
            used.add(told)
        elif root or (told not in tuple(Why) and not (store / told).exists()):
            file.unlink()
    return used


def _remove_old(place: Path) -> None:
    """It is gone if nobody can be using it any more."""
    if _used_at(place) >= time.time() - BUILD_S_MAX:
        return
    if place.is_dir():
        shutil.rmtree(place, ignore_errors=True)
    else:
        place.unlink(missing_ok=True)


def _used_at(file: Path) -> float:
    """Seconds since 1970; 0 if somebody else has just removed it."""
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0]).parse_args()
    try:
        set_up()
    except CannotCompile as error:
        print(f"{'' if insisted() else 'warning: '}not compiled, all runs interpreted: {error}", file=sys.stderr)
        raise SystemExit(1 if insisted() else 0) from error


if __name__ == "__main__":
    main()
