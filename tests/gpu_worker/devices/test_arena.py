"""Pages in host memory, mapped one after the other."""

import mmap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_worker.devices.arena import Arena, Bytes, MappingCache
from tests.memory import mapped_bytes, open_files

PAGE = mmap.PAGESIZE


def image(pages: int, seed: int) -> Bytes:
    """Returns random bytes for so many pages."""
    return np.random.default_rng(seed).integers(0, 256, pages * PAGE, np.uint8)


class Mapped:
    """Bytes of the arenas made since this was. What earlier tests left to the garbage collector does not count."""

    def __init__(self) -> None:
        self._others = mapped_bytes("gearmesh-arena").keys()

    def __call__(self) -> int:
        return sum(size for file, size in mapped_bytes("gearmesh-arena").items() if file not in self._others)


@pytest.mark.parametrize("pages", [(0,), (3,), (0, 1, 2), (2, 1, 0), (5, 0, 3, 1), (1, 2, 5, 6, 7, 0)])
def test_pages_wherever_they_lie_are_seen_side_by_side(pages: tuple[int, ...]) -> None:
    arena = Arena(8, PAGE)
    picture = image(len(pages), seed=1)
    arena.copy_in(picture, pages)
    assert np.array_equal(arena.map_pages(pages), picture)
    arena.close()


def test_an_image_that_does_not_fill_its_last_page_leaves_the_rest_alone() -> None:
    arena = Arena(2, PAGE)
    arena.copy_in(image(2, seed=1), (0, 1))
    arena.copy_in(image(2, seed=2)[: PAGE + 10], (1, 0))
    mapping = arena.map_pages((1, 0))
    assert np.array_equal(mapping[: PAGE + 10], image(2, seed=2)[: PAGE + 10])
    assert np.array_equal(mapping[PAGE + 10 :], image(2, seed=1)[10:PAGE])
    arena.close()


def test_pages_that_nobody_wrote_are_zero() -> None:
    arena = Arena(3, PAGE)
    assert not arena.map_pages((2, 0, 1)).any()
    arena.close()


def test_a_window_shows_what_is_written_after_it_was_made() -> None:
    arena = Arena(4, PAGE)
    mapping = arena.map_pages((3, 1))
    picture = image(2, seed=3)
    arena.copy_in(picture, (3, 1))
    assert np.array_equal(mapping, picture)
    arena.close()


def test_windows_that_share_pages_show_the_same() -> None:
    arena = Arena(4, PAGE)
    picture = image(3, seed=4)
    first, second = arena.map_pages((0, 1, 2)), arena.map_pages((2, 3, 1))
    arena.copy_in(picture, (0, 1, 2))
    assert np.array_equal(first, picture)
    assert np.array_equal(second[:PAGE], picture[2 * PAGE :])
    assert not second[PAGE : 2 * PAGE].any()
    assert np.array_equal(second[2 * PAGE :], picture[PAGE : 2 * PAGE])
    arena.close()


def test_two_arenas_have_nothing_in_common() -> None:
    first, second = Arena(1, PAGE), Arena(1, PAGE)
    first.copy_in(image(1, seed=5), (0,))
    assert not second.map_pages((0,)).any()
    first.close()
    second.close()


def test_a_window_s_address_space_is_given_back_with_its_last_view() -> None:
    mapped = Mapped()
    arena = Arena(4, PAGE)
    before = mapped()
    assert before == 4 * PAGE
    mapping = arena.map_pages((0, 2, 3))
    part = mapping[PAGE:]
    assert mapped() == before + 3 * PAGE
    del mapping
    assert mapped() == before + 3 * PAGE
    del part
    assert mapped() == before
    arena.close()


def test_many_windows_leave_nothing_behind() -> None:
    mapped = Mapped()
    arena = Arena(4, PAGE)
    before = mapped()
    for i in range(500):
        assert len(arena.map_pages((i % 4, (i + 2) % 4))) == 2 * PAGE
    assert mapped() == before
    arena.close()


def test_an_arena_s_memory_goes_when_it_is_closed_and_its_last_window_is_gone() -> None:
    mapped, files = Mapped(), open_files()
    arena = Arena(4, PAGE)
    picture = image(1, seed=6)
    arena.copy_in(picture, (2,))
    mapping = arena.map_pages((2,))
    arena.close()
    del arena
    assert open_files() - files == set()
    assert mapped() == PAGE
    assert np.array_equal(mapping, picture)
    del mapping
    assert mapped() == 0


def test_no_windows_are_made_of_a_closed_arena() -> None:
    arena = Arena(1, PAGE)
    arena.close()
    with pytest.raises(OSError, match="mmap"):
        arena.map_pages((0,))


@settings(max_examples=60)
@given(
    writes=st.lists(
        st.tuples(st.lists(st.integers(0, 5), min_size=1, max_size=6, unique=True), st.integers(0, 1000)), max_size=6
    ),
    shown=st.lists(st.integers(0, 5), min_size=1, max_size=6, unique=True),
)
def test_a_window_shows_the_last_write_of_each_page(writes: list[tuple[list[int], int]], shown: list[int]) -> None:
    arena = Arena(6, PAGE)
    expected = np.zeros((6, PAGE), np.uint8)
    mapping = arena.map_pages(shown)
    for pages, seed in writes:
        picture = image(len(pages), seed)
        arena.copy_in(picture, pages)
        expected[pages] = picture.reshape(-1, PAGE)
    assert np.array_equal(mapping, expected[shown].reshape(-1))
    arena.close()


# -- cached mappings --------------------------------------------------------------------------------------------------


def test_a_window_of_the_same_pages_in_the_same_order_is_had_again() -> None:
    cache = MappingCache(Arena(8, PAGE), 8 * PAGE)
    first = cache.get((3, 1))
    assert cache.get((3, 1)) is first
    assert cache.get((1, 3)) is not first


def test_windows_that_were_not_used_for_longest_make_room() -> None:
    cache = MappingCache(Arena(8, PAGE), 4 * PAGE)
    first, second = cache.get((0, 1)), cache.get((2, 3))
    assert cache.get((0, 1)) is first
    cache.get((4, 5))
    assert cache.get((0, 1)) is first
    assert cache.get((2, 3)) is not second


def test_a_window_larger_than_all_that_may_be_kept_is_made_each_time() -> None:
    cache = MappingCache(Arena(8, PAGE), PAGE)
    assert cache.get((0, 1)) is not cache.get((0, 1))
