"""Silence, and one way of computing, while a module is looked at; and where in the author's code things happened."""

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
GUARDS = "torch.fx.experimental.symbolic_shapes"  # where torch.export tells what it takes for granted of a shape
GUARD = "_log_guard"  # by which function of torch's it tells that: what, and the expression
EQUAL = "Eq("  # how the expression begins if an extent is a certain number by it


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What torch, and the module, print and warn is not shown: what matters of it is said by us, as an error.

    Attention takes the way that a graph can hold; its fused kernels answer otherwise where padding is masked. Functions
    that are compiled run as they were written: nothing is compiled for a few rows. Inference mode is left, in which
    nothing can be exported; gradients stay as they are.
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


def followed() -> AbstractContextManager[None]:
    """While torch.export goes through a module: what branches and loops take from around them is found by the compiler,
    which `quiet` has switched off. Without it they would hold tensors without values.
    """
    stance: AbstractContextManager[None] = torch.compiler.set_stance("default")
    return stance


class Guards(logging.Handler):
    """Where forward made torch.export take something for granted of the batch."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._seen: list[tuple[bool, str]] = []  # (whether an extent is a certain number by it, the author's line)

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler; called while the author's code runs."""
        if record.funcName == GUARD:
            _, expression, *_ = record.args or ("", "")
            self._seen.append((str(expression).startswith(EQUAL), authors_line(traceback.extract_stack())))

    @property
    def line(self) -> str:
        """The likeliest one, as in ' (file.py:12)', or nothing."""
        equal = [line for is_equal, line in self._seen if is_equal and line]
        return next(iter(equal), next((line for _, line in reversed(self._seen) if line), ""))


@contextlib.contextmanager
def guards() -> Iterator[Guards]:
    """They are listened for."""
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
def unheard() -> Iterator[None]:
    """What is taken for granted is what we say of the batch, and no doing of the author's."""
    logger = logging.getLogger(GUARDS)
    disabled = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = disabled


def authors_line(frames: traceback.StackSummary) -> str:
    """`authors_place` for the end of a clause, as in ' (file.py:12)', or nothing."""
    place = authors_place(frames)
    return f" ({place})" if place else ""


def authors_place(frames: traceback.StackSummary) -> str:
    """The innermost line that is neither torch's nor ours, as in 'file.py:12', or nothing."""
    others = [frame for frame in frames if not frame.filename.startswith((*NOT_THE_AUTHORS, "<"))]
    return f"{Path(others[-1].filename).name}:{others[-1].lineno}" if others else ""
