"""Silence, and one way of computing, while a module is looked at."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import torch

LOGGERS = ("torch.fx", "torch._export", "torch._dynamo", "torch.export")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What torch, and the module, print and warn is not shown: what matters of it is said by us, as an error.

    Attention takes the way that a graph can hold; its fused kernels answer otherwise where padding is masked.
    """
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    nowhere = io.StringIO()
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
