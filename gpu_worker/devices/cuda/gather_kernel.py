"""The gather as one kernel: copies pages from anywhere in the arena, one after the other, into the execution buffer.

One program copies one block of one page with the widest loads. `torch.index_select` does the same with an index
computed for every element; one copy per page goes through the copy engine, which is slower within one device.
scripts/bench_gpu.py measures all three.
"""

import torch
import triton
import triton.language as tl

BLOCK = 2048  # words of 8 bytes: 16 KiB, so that a page of 1 MiB or more is a whole number of blocks


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _gather(arena, buffer, pages, words, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def, unused-ignore]
    block = tl.program_id(0).to(tl.int64)
    page = tl.program_id(1).to(tl.int64)
    source = tl.load(pages + page)
    offsets = block * BLOCK + tl.arange(0, BLOCK)
    tl.store(buffer + page * words + offsets, tl.load(arena + source * words + offsets))


def gather(arena: torch.Tensor, buffer: torch.Tensor, pages: torch.Tensor) -> None:
    """Copies buffer[i] = arena[pages[i]]; arguments as of Driver.gather. Words per page must be a multiple of BLOCK."""
    words = arena.shape[1]
    _gather[(words // BLOCK, len(pages))](arena, buffer, pages, words, BLOCK=BLOCK, num_warps=8)
