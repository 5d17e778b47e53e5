"""Progress is told on standard error: a bar in a terminal, plain lines elsewhere, and nothing by the other ranks."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

import pytest

from bitad.runtime import progress
from bitad.runtime.progress import Meter, progress_callback, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@contextmanager
def in_a_terminal() -> Iterator[Terminal]:
    """Within, standard error is a terminal. (No fixture: pytest's own capture would take its place.)"""
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(Terminal()) as screen:
        patch.setenv("TERM", "xterm")
        patch.setenv("COLUMNS", "160")
        yield screen


@pytest.fixture
def lines_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1.0)


@pytest.mark.usefixtures("lines_at_once")
def test_where_there_is_no_terminal_plain_lines_tell_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with Meter("reading", 4) as meter:
        meter.advance()
        meter.advance(2, note="loss 0.5")
    out, err = capsys.readouterr()
    assert out == ""
    first, second = err.splitlines()
    assert first.startswith("reading: 1 of 4, ")
    assert second.startswith("reading: 3 of 4, ")
    assert second.endswith("s left loss 0.5")


def test_plain_lines_come_only_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(range(1000), "reading", 1000)) == list(range(1000))
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("lines_at_once")
def test_what_does_not_show_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track("abc", "reading", 3, show=False)) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_with_the_note() -> None:
    with in_a_terminal() as screen, Meter("epoch 1 of 2", 4) as meter:
        meter.advance(note="loss 0.5")
        meter.advance(3, note="loss 0.25")
    assert "epoch 1 of 2 loss 0.25" in screen.getvalue()
    assert "4/4" in screen.getvalue()


def test_a_terminal_shows_names_as_they_are() -> None:
    """Brackets mean markup to rich; in a file's name they are brackets."""
    with in_a_terminal() as screen, Meter("reversing a[bold]b[/c].mp4", 2) as meter:
        meter.advance(2)
    assert "a[bold]b[/c].mp4" in screen.getvalue()


@pytest.mark.usefixtures("lines_at_once")
def test_following_takes_how_many_are_done_and_not_how_many_more(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_callback("rendering") as on_progress:
        for done in (1, 2, 5):
            on_progress(done, 5)
    told = [line.split(",")[0] for line in capsys.readouterr().err.splitlines()]
    assert told == ["rendering: 1 of 5", "rendering: 2 of 5", "rendering: 5 of 5"]


def test_following_that_is_never_called_shows_nothing() -> None:
    with in_a_terminal() as screen, progress_callback("rendering"):
        pass
    assert screen.getvalue() == ""


def test_an_error_ends_the_display_and_goes_on() -> None:
    def broken(meter: Meter) -> None:
        with meter:
            raise ValueError("broken")

    with in_a_terminal() as screen, pytest.raises(ValueError, match="broken"):
        broken(Meter("reading", 3))
    hide, show = "\x1b[?25l", "\x1b[?25h"
    assert screen.getvalue().rindex(show) > screen.getvalue().rindex(hide)  # the cursor is back
