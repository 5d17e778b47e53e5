"""Names reach the terminal as text: they can neither steer it nor look like lines of ours."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitad.cli import main
from bitad.reports.tables import Table
from bitad.runtime.log import LineFormatter, add_log_file, command_logging, printable, quoted, shortlist
from bitad.runtime.progress import Meter

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egpj.exe\u2066"
SHOWN = r"\x1b]0;owned\x07\x1b[2J\x9b31m\u202egpj.exe\u2066"


@given(st.text())
def test_printed_text_has_nothing_that_steers(text: str) -> None:
    for character in printable(text):
        assert unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp")
        assert unicodedata.bidirectional(character) not in (
            "LRE",
            "RLE",
            "LRO",
            "RLO",
            "PDF",
            "LRI",
            "RLI",
            "FSI",
            "PDI",
        )


@given(st.text(st.characters(categories=["L", "M", "N", "P", "S", "Zs"])))
def test_text_of_any_language_is_printed_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_lines_stay_where_they_are_wanted() -> None:
    assert printable("a\nb\x1b", keep="\n") == "a\nb\\x1b"
    assert printable("a\nb\r\t") == r"a\nb\r\t"
    assert printable("caf\udce9.mp4") == r"caf\udce9.mp4"


def document(folder: Path, name: str) -> tuple[Path, Path]:
    rows = [{"segment": [5, 1], "label": name}, {"segment": [1, 2], "label": name}]
    truth, found = folder / "truth.json", folder / "found.json"
    truth.write_text(json.dumps({"database": {name: {"subset": "Test", "duration": 9, "annotations": rows}}}))
    found.write_text(json.dumps({"results": {name: [{"segment": [1, 2], "label": name, "score": 0.5}]}}))
    return truth, found


def test_a_label_cannot_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, found = document(tmp_path, f"{EVIL}\nfake: 0 defects")
    assert main(["annotations", "check", str(truth)]) == 1
    checked = capsys.readouterr().out
    assert (
        main(
            [
                "evaluate",
                "--ground-truth",
                str(truth),
                "--detections",
                str(found),
                "--subset",
                "Test",
                "--per-class",
            ]
        )
        == 0
    )
    evaluated = capsys.readouterr().out
    for out in (checked, evaluated):
        assert SHOWN + r"\nfake: 0 defects" in out
        assert not any(line.startswith("fake") for line in out.splitlines())
        assert printable(out, keep="\n") == out


def test_errors_and_file_names_cannot_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth, _ = document(tmp_path, EVIL)
    named = tmp_path / "\x1b[31m\u202e.json"
    named.write_text("{}")
    for command in (
        ["annotations", "check", str(named)],
        ["evaluate", "--ground-truth", str(truth), "--detections", str(named), "--subset", EVIL],
        ["weights", "inspect", str(named)],
        ["reverse", str(named), str(tmp_path / "x.json")],
    ):
        assert main(command) == 1
        out, err = capsys.readouterr()
        assert r"\x1b" in err
        assert printable(out + err, keep="\n") == out + err


def test_wrong_usage_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (
        [EVIL],
        ["annotations", "check", "x.json", EVIL],
        ["merge", "a", "b", "--out", "c", f"--{EVIL}"],
    ):
        with pytest.raises(SystemExit):
            main(command)
        err = capsys.readouterr().err
        assert printable(err, keep="\n") == err
        assert r"\x1b" in err


def test_a_traceback_that_was_asked_for_cannot_steer_the_terminal(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bitad", "annotations", "check", str(tmp_path / EVIL), "--debug"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr
    assert SHOWN in ended.stderr
    assert printable(ended.stderr, keep="\n") == ended.stderr


def test_a_message_of_the_log_is_one_line_of_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with command_logging():
        add_log_file(tmp_path)
        logging.getLogger("bitad").warning("video %s is left out", f"{EVIL}\n12:00:00 all is well")
    for text in ((tmp_path / "log.txt").read_text(), capsys.readouterr().err):
        (line,) = text.splitlines()
        assert SHOWN + r"\n12:00:00" in line


def test_a_traceback_in_the_log_keeps_its_lines() -> None:
    try:
        raise ValueError(EVIL)
    except ValueError as error:
        record = logging.LogRecord("bitad", logging.ERROR, "x", 1, "failed", (), (type(error), error, None))
    first, *rest = LineFormatter().format(record).splitlines()
    assert first == "failed"
    assert SHOWN in rest[-1]


def test_tables_are_shown_as_text_and_kept_as_they_are() -> None:
    table = Table(EVIL, ("name", EVIL), ((EVIL, 1.0),), (EVIL,))
    for shown in (table.text(), table.markdown()):
        assert printable(shown, keep="\n") == shown
    assert table.json()["rows"] == ((EVIL, 1.0),)


def test_what_is_said_of_progress_is_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitad.runtime.progress.SECONDS_BETWEEN_LINES", -1)
    with Meter(f"reversing {EVIL}", 2) as meter:
        meter.advance(note=EVIL)
    err = capsys.readouterr().err
    assert err.count(SHOWN) == 2
    assert "\x1b" not in err


def test_a_shortlist_shows_the_first_names_and_counts_the_rest() -> None:
    assert shortlist([]) == ""
    assert shortlist("abc") == "a, b, c"
    assert shortlist("abcde") == "a, b, c and 2 more"
    assert shortlist(["plain", "e\u0301", "x\x1b"], 2, quote=quoted) == r"'plain', 'e\u0301' and 1 more"
