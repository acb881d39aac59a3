"""How much memory this process holds, and giving back what it does not need."""

import ctypes
import os
from pathlib import Path

STATM = Path("/proc/self/statm")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; other C libraries have none
_OPTION = getattr(ctypes.CDLL(None), "mallopt", None)  # likewise
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # options of `mallopt`: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
FREED_BYTES = 64 << 20  # at the end of a heap that stay with the process
OWN_BYTES = 32 << 20  # more in one piece is the system's as soon as it is freed; glibc takes no greater limit


def resident_bytes() -> int:
    """Bytes of memory that this process holds; 0 if the system does not say."""
    try:
        return int(STATM.read_text().split()[1]) * PAGE_BYTES
    except OSError:
        return 0


def give_back() -> None:
    """Memory that was freed goes back to the system, where the C library can do that."""
    if _TRIM is not None:
        _TRIM(ctypes.c_size_t(0))


def keep_freed() -> None:
    """Memory that is freed stays with this process, to be used again, until `give_back`; where the C library can.

    By itself glibc gives back what is freed beyond twice the size of one large message, and gets it anew for the next
    one, page by page.
    """
    if _OPTION is not None:
        _OPTION(ctypes.c_int(MMAP_THRESHOLD), ctypes.c_int(OWN_BYTES))
        _OPTION(ctypes.c_int(TRIM_THRESHOLD), ctypes.c_int(FREED_BYTES))
