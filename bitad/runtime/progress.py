"""Progress of long work with the time left: a bar in a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from bitad.runtime.log import printable

if TYPE_CHECKING:
    from rich.progress import Progress

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 15.0

_is_shown: ContextVar[bool] = ContextVar("progress is shown", default=True)


@contextmanager
def progress_shown(show: bool) -> Iterator[None]:
    """Within, this thread shows progress or, with ``show=False``, none."""
    before = _is_shown.set(show)
    try:
        yield
    finally:
        _is_shown.reset(before)


class Meter:
    """Shows how far ``total`` pieces of work have come, on standard error.

    Args:
        what: a few words that say what is being done.
        total: number of pieces.
        show: False shows nothing (other ranks than 0).
    """

    def __init__(self, what: str, total: int, *, show: bool = True) -> None:
        self.what, self.total, self.done, self.note = printable(what), total, 0, ""
        self._began = self._said = time.monotonic()
        show = show and _is_shown.get()
        self._lines = show and not sys.stderr.isatty()
        self._bar: Progress | None = None
        if show and not self._lines:
            # Not imported before it is needed, as rich draws random numbers when it is imported.
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            # No markup: brackets in the name of a file are brackets.
            description = TextColumn("{task.description}", markup=False)
            columns = (description, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(self.what, total=total)

    def __enter__(self) -> Meter:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, pieces: int = 1, note: str = "") -> None:
        """Some more pieces are done; ``note`` says the figures of the moment."""
        self.done += pieces
        self.note = printable(note)
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, description=f"{self.what} {self.note}".rstrip())
        elif self._lines and time.monotonic() - self._said > SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            left = ""
            if self.done:
                left = f", {(self._said - self._began) / self.done * (self.total - self.done):.0f} s left"
            print(f"{self.what}: {self.done} of {self.total}{left} {self.note}".rstrip(), file=sys.stderr)


def track(items: Iterable[Item], what: str, total: int, *, show: bool = True) -> Iterator[Item]:
    """Hands on ``items`` and shows how far they have come."""
    with Meter(what, total, show=show) as meter:
        for item in items:
            yield item
            meter.advance()


@contextmanager
def following(what: str) -> Iterator[Callable[[int, int], None]]:
    """Within, a function to call with (pieces done, pieces in all) that shows them."""
    with ExitStack() as stack:
        meters: list[Meter] = []

        def on_progress(done: int, total: int) -> None:
            if not meters:  # the total is known only now
                meters.append(stack.enter_context(Meter(what, total)))
            meters[0].advance(done - meters[0].done)

        yield on_progress
