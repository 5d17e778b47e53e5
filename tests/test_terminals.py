"""What commands print reaches any terminal and any pipe, and their files are written whatever these take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NAME = "video’s 日本 é"
QUIET = {"PYTHONUNBUFFERED": "", "PYTHONWARNINGS": "error"}
TERMINALS = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "latin-1, strict": {"PYTHONIOENCODING": "latin-1:strict"},
    "C locale": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [{"segment": [1, 2], "label": NAME}]
    truth = {NAME: {"subset": NAME, "duration": 9, "annotations": rows}}
    truth["second"] = {"subset": NAME, "duration": 9, "annotations": [{"segment": [5, 1], "label": NAME}]}
    sound = {NAME: truth[NAME]}
    found = {NAME: [{"segment": [1, 2], "label": NAME, "score": 0.5}], "strange ’": [{**rows[0], "score": 0.5}]}
    for file, content in (
        ("odd.json", {"database": truth}),
        ("truth.json", {"database": sound}),
        ("found.json", {"results": found}),
        ("other.json", {"results": {"’": []}}),
    ):
        (tmp_path / file).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return tmp_path


def run(
    folder: Path, *arguments: str, program: str | None = None, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Runs a command of `bitad`, or a program with these arguments."""
    return subprocess.run(
        [sys.executable, *(("-m", "bitad") if program is None else ("-c", program)), *arguments],
        cwd=folder,
        env={**os.environ, **QUIET, **environment},
        capture_output=True,
        timeout=60,
        check=False,
    )


COMMANDS = {
    "evaluate": (
        "evaluate --ground-truth truth.json --detections found.json --json out.json --per-class --subset",
        0,
    ),
    "merge": ("merge found.json other.json --out out.json", 0),
    "check": ("annotations check odd.json", 1),
    "convert": ("annotations convert truth.json out.json", 0),
    "reverse": ("reverse truth.json out.json", 0),
    "help": ("evaluate --help", 0),
    "error": ("evaluate --ground-truth truth.json --detections found.json --subset", 1),
}


# Runs commands in one interpreter, and writes the output, the errors and the status of each to files.
ONE_AFTER_THE_OTHER = """
import os, sys
from bitad.cli import main

for command in sys.argv[1:]:
    name, *arguments = command.split(chr(9))
    for descriptor, suffix in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{name}.{suffix}", os.O_WRONLY | os.O_CREAT), descriptor)
    try:
        status = main(arguments)
    except SystemExit as end:  # of --help
        status = end.code
    with open(f"{name}.status", "w") as file:
        print(status, file=file)
"""


@pytest.mark.parametrize("terminal", TERMINALS)
def test_no_terminal_is_too_poor_for_a_command(folder: Path, terminal: str) -> None:
    given = []
    for name, (arguments, _) in COMMANDS.items():
        subset = [{"evaluate": NAME, "error": "’"}[name]] if arguments.endswith("--subset") else []
        given.append("\t".join((name, *arguments.replace("out.json", f"{name}.json").split(), *subset)))
    done = run(folder, *given, program=ONE_AFTER_THE_OTHER, **TERMINALS[terminal])
    assert (done.returncode, done.stderr) == (0, b"")
    for name, (arguments, status) in COMMANDS.items():
        out, err = ((folder / f"{name}.{suffix}").read_bytes() for suffix in ("out", "err"))
        assert (folder / f"{name}.status").read_text() == f"{status}\n", err
        assert (out + err == b"") == (name == "reverse")  # which says nothing
        assert b"Traceback" not in err
        assert b"codec" not in out + err
        assert (folder / f"{name}.json").exists() == ("out.json" in arguments)
        if "out.json" in arguments:  # in UTF-8, whatever the terminal takes
            assert NAME in (folder / f"{name}.json").read_text(encoding="utf-8")


def test_characters_that_a_terminal_cannot_show_are_escaped(folder: Path) -> None:
    command = ("evaluate", "--ground-truth", "truth.json", "--detections", "found.json", "--per-class")
    shown = run(folder, *command, "--subset", NAME, PYTHONIOENCODING="ascii").stdout.decode("ascii")
    assert r"video\u2019s \u65e5\u672c \xe9" in shown
    shown = run(folder, *command, "--subset", NAME, PYTHONIOENCODING="cp1252").stdout.decode("cp1252")
    assert r"video’s \u65e5\u672c é" in shown
    assert NAME in run(folder, *command, "--subset", NAME, PYTHONIOENCODING="utf-8").stdout.decode()


def closed_pipe(folder: Path, *arguments: str, both: bool = False, **environment: str) -> tuple[int, bytes]:
    """Status and standard error of a command whose output nobody reads."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "bitad", *arguments],
            cwd=folder,
            env={**os.environ, **QUIET, **environment},
            stdout=pipe,
            stderr=pipe if both else subprocess.PIPE,
            timeout=60,
            check=False,
        )
    return done.returncode, done.stderr or b""


@pytest.mark.skipif(os.name == "nt", reason="there a pipe without a reader is another error")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("both", [False, True])
def test_a_pipe_that_nobody_reads_is_no_error(folder: Path, both: bool, unbuffered: str) -> None:
    for arguments, status in (
        (f"{COMMANDS['evaluate'][0]}={NAME.replace(' ', '~')}", 0),
        ("--help", 0),
        ("annotations check odd.json", 1),
    ):
        command = [argument.replace("~", " ") for argument in arguments.split()]
        assert closed_pipe(folder, *command, both=both, PYTHONUNBUFFERED=unbuffered) == (status, b"")
    assert (folder / "out.json").exists()  # what is written after the first line that nobody read


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_a_full_disk_does_not_take_is_an_error_in_a_line(folder: Path, unbuffered: str) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "bitad", "annotations", "check", "truth.json"],
            cwd=folder,
            env={**os.environ, **QUIET, "PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1
    assert b"No space left on device" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="no shell")
def test_closed_standard_streams_are_no_error(folder: Path) -> None:
    command = f"{sys.executable} -m bitad annotations convert truth.json out.json"
    for closed in (">&-", "2>&-", ">&- 2>&-"):
        (folder / "out.json").unlink(missing_ok=True)
        done = subprocess.run(
            ["sh", "-c", f"{command} {closed}"], cwd=folder, capture_output=True, timeout=60, check=False
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert NAME in (folder / "out.json").read_text(encoding="utf-8")


@pytest.mark.skipif(sys.platform == "win32", reason="names of files are Unicode there")
def test_a_name_that_the_locale_cannot_write_is_an_error_in_a_line(folder: Path) -> None:
    code = f"from bitad.cli import main; raise SystemExit(main(['evaluate', '--ground-truth', {NAME!r}, "
    code += "'--detections', 'found.json', '--subset', 'x']))"
    done = subprocess.run(
        [sys.executable, "-c", code.encode("unicode_escape").decode("ascii")],
        cwd=folder,
        env={**os.environ, **TERMINALS["C locale"]},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert b"set PYTHONUTF8=1" in done.stderr
    assert done.stderr.count(b"\n") == 1
