"""Silences torch and the module while a module is examined, fixes how torch computes, and finds the author's lines."""

import contextlib
import io
import logging
import traceback
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import torch

NOT_THE_AUTHORS = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]), str(Path(logging.__file__).parent))
LOGGERS = ("torch.fx", "torch._export", "torch._dynamo", "torch._guards", "torch.export")
# the logger in which torch.export reports the assumptions that it makes about a shape
GUARDS = "torch.fx.experimental.symbolic_shapes"
GUARD = "_log_guard"  # the torch function that logs an assumption: message and expression
EQUAL = "Eq("  # start of an expression that fixes an extent to a number


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Output and warnings of torch and of the module are not shown; the importer reports what matters as errors.

    Attention takes the path that a graph can hold; its fused kernels give other results where padding is masked.
    Compiled functions run uncompiled: compiling does not pay for a few rows. Inference mode is off, because nothing can
    be exported in it; the gradient mode is restored afterwards.
    """
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    nowhere = io.StringIO()
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
            torch.compiler.set_stance("force_eager"),
            torch.inference_mode(False) if torch.is_inference_mode_enabled() else contextlib.nullcontext(),
            torch.set_grad_enabled(torch.is_grad_enabled()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def compiler_enabled() -> AbstractContextManager[None]:
    """The compiler is on, which `quiet` turned off: torch.export needs it to find what branches and loops close over.

    Without it they would hold tensors without values.
    """
    stance: AbstractContextManager[None] = torch.compiler.set_stance("default")
    return stance


class Guards(logging.Handler):
    """Records the lines at which `forward` made torch.export assume something about the batch."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._seen: list[tuple[bool, str]] = []  # (whether it fixes an extent to a number, the author's line)

    def emit(self, record: logging.LogRecord) -> None:
        """Records the assumption in the log record; called while the author's code runs."""
        if record.funcName == GUARD:
            _, expression, *_ = record.args or ("", "")
            self._seen.append((str(expression).startswith(EQUAL), authors_line(traceback.extract_stack())))

    @property
    def line(self) -> str:
        """The most likely line, as in ' (file.py:12)'; empty if there is none."""
        equal = [line for is_equal, line in self._seen if is_equal and line]
        return next(iter(equal), next((line for _, line in reversed(self._seen) if line), ""))


@contextlib.contextmanager
def guards() -> Iterator[Guards]:
    """Yields a recorder of the assumptions that torch.export makes in the block."""
    logger = logging.getLogger(GUARDS)
    handler = Guards()
    handlers, level, propagates = logger.handlers, logger.level, logger.propagate
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
    try:
        yield handler
    finally:
        logger.handlers, logger.propagate = handlers, propagates
        logger.setLevel(level)


@contextlib.contextmanager
def ignoring_guards() -> Iterator[None]:
    """Assumptions in the block are not recorded. The importer's own statements make them, not the author's code."""
    logger = logging.getLogger(GUARDS)
    disabled = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = disabled


def authors_line(frames: traceback.StackSummary) -> str:
    """Returns `authors_place` as the end of a clause, as in ' (file.py:12)'; empty if there is none."""
    place = authors_place(frames)
    return f" ({place})" if place else ""


def authors_place(frames: traceback.StackSummary) -> str:
    """Returns the innermost line outside torch and this package, as in 'file.py:12'; empty if there is none."""
    others = [frame for frame in frames if not frame.filename.startswith((*NOT_THE_AUTHORS, "<"))]
    return f"{Path(others[-1].filename).name}:{others[-1].lineno}" if others else ""
