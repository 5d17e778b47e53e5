"""Progress and remaining time: a bar in a terminal, otherwise a plain line every few seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

from bitad.runtime.log import printable

if TYPE_CHECKING:
    from rich.progress import Progress

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 15.0

_is_shown: ContextVar[bool] = ContextVar("progress is shown", default=True)


def duration_text(seconds: float) -> str:
    """A duration in its two largest units: ``12 s``, ``3 min``, ``2 h 5 min``, ``1 d 3 h``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


@contextmanager
def progress_shown(show: bool) -> Iterator[None]:
    """Within this context this thread shows progress, or none."""
    before = _is_shown.set(show)
    try:
        yield
    finally:
        _is_shown.reset(before)


class Meter:
    """Shows the progress of ``total`` items of work on standard error."""

    def __init__(self, what: str, total: int, *, show: bool = True) -> None:
        self.what, self.total, self.done, self.note = printable(what), total, 0, ""
        self._started = self._printed = time.monotonic()
        show = show and _is_shown.get()
        self._lines = show and not sys.stderr.isatty()
        self._bar: Progress | None = None
        if show and not self._lines:
            # Imported here, as importing rich draws random numbers.
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            # No markup: file names may contain brackets.
            description = TextColumn("{task.description}", markup=False)
            columns = (description, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(self.what, total=total)

    def __enter__(self) -> Meter:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, items: int = 1, note: str = "") -> None:
        """Count more items as done; ``note`` shows current figures."""
        self.done += items
        self.note = printable(note)
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, description=f"{self.what} {self.note}".rstrip())
        elif self._lines and time.monotonic() - self._printed > SECONDS_BETWEEN_LINES:
            self._printed = time.monotonic()
            left = ""
            if self.done:
                seconds = (self._printed - self._started) / self.done * (self.total - self.done)
                left = f", {duration_text(seconds)} left"
            print(f"{self.what}: {self.done} of {self.total}{left} {self.note}".rstrip(), file=sys.stderr)


def track(items: Iterable[Item], what: str, total: int, *, show: bool = True) -> Iterator[Item]:
    """Iterate over ``items`` and show progress."""
    with Meter(what, total, show=show) as meter:
        for item in items:
            yield item
            meter.advance()


@contextmanager
def progress_callback(what: str) -> Iterator[Callable[[int, int], None]]:
    """Within this context, a function (items done, items in all) that shows progress."""
    with ExitStack() as stack:
        meters: list[Meter] = []

        def on_progress(done: int, total: int) -> None:
            if not meters:  # the total is known only now
                meters.append(stack.enter_context(Meter(what, total)))
            meters[0].advance(done - meters[0].done)

        yield on_progress
