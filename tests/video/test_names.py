"""Names of videos that differ by a habit are one video's where no other can be meant, and two videos' elsewhere."""

from __future__ import annotations

import subprocess
import sys
import unicodedata
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitad.runtime.files import is_file_named
from bitad.video.names import Lookup, Matching, VideoFinder, new_names, renamed

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("wanted", "found", "by"),
    [
        ("abc", "v_abc", "the prefix v_"),
        ("v_abc", "abc", "the prefix v_"),
        ("abc.mp4", "abc", "an extension"),
        ("abc", "abc.AVI", "an extension"),
        ("abc", "abc.mp4.npy", "an extension"),
        ("Abc", "aBC", "case"),
        (NFC, NFD, "Unicode form"),
        ("abc.mp4", "v_abc", "an extension and the prefix v_"),
        (NFC, f"V_{NFD.upper()}.npz", "Unicode form, an extension, the prefix v_ and case"),
        ("v_", "v_.mp4", "an extension"),  # no name is nothing but a prefix
    ],
)
def test_a_habit_is_seen_and_named(wanted: str, found: str, by: str) -> None:
    matching = Matching.of(["other", wanted], [found, "other"])
    assert matching.pairs == {wanted: found}
    assert f"1 video matched although names differ by {by}: " in str(matching.line("features"))


def test_the_line_tells_how_many_and_one_of_them() -> None:
    names = [f"x{number}" for number in range(12)]
    line = Matching.of(names, [f"v_{name}" for name in names]).line("folder")
    assert line == "folder: 12 videos matched although names differ by the prefix v_: 'v_x0' for 'x0'"
    assert Matching.of(names, names).line("folder") is None


@pytest.mark.parametrize(
    ("wanted", "available"),
    [
        (["a"], ["a", "A", "v_a", "a.mp4"]),  # the name itself wins
        (["a", "v_a"], ["a"]),  # what is there is the other video
        (["a", "A"], ["A"]),
        (["a"], ["b", "aa", "a_v_", "va", "a.b", "v__a"]),
        (["a"], []),
        ([], ["a"]),
    ],
)
def test_what_may_be_another_video_is_not_taken(wanted: list[str], available: list[str]) -> None:
    matching = Matching.of(wanted, available)
    assert (matching.pairs, matching.unclear) == ({}, {})


@pytest.mark.parametrize(
    ("wanted", "available", "name", "both"),
    [
        (["x"], ["v_x", "X"], "x", ("'v_x'", "'X'")),
        (["x"], ["x.mp4", "v_x"], "x", ("'x.mp4'", "'v_x'")),
        (["a", "v_a"], ["A"], "a", ("'a'", "'v_a'")),
        (["a", "v_a"], ["a", "A"], "v_a", ("'a'", "'v_a'")),
    ],
)
def test_two_candidates_are_an_error_that_names_them(
    wanted: list[str], available: list[str], name: str, both: tuple[str, str]
) -> None:
    lookup = Lookup("there", partial(tuple, wanted), partial(tuple, available))
    with pytest.raises(ValueError, match=r"^there: ") as refused:
        lookup.find(name)
    assert all(one in str(refused.value) for one in both)
    with pytest.raises(ValueError, match=r"^there: "):
        renamed(dict.fromkeys(available, 0), wanted, "there")


def test_names_that_differ_by_case_alone_are_told_apart_by_it() -> None:
    assert Matching.of(["a", "A"], ["v_a", "v_A"]).pairs == {"a": "v_a", "A": "v_A"}
    assert Matching.of(["a", "A"], ["a", "v_A"]).pairs == {"A": "v_A"}


names = st.lists(
    st.sampled_from(["a", "A", "v_a", "v_A", "a.mp4", "b", "v_b", NFC, NFD, "B.npy", "c"]), unique=True
)


@given(wanted=names, available=names, order=st.randoms(use_true_random=False))
def test_no_name_stands_for_two_and_order_does_not_matter(
    wanted: list[str], available: list[str], order: Callable[..., object]
) -> None:
    matching = Matching.of(wanted, available)
    assert len(set(matching.pairs.values())) == len(matching.pairs)
    assert not set(matching.pairs) & set(available)
    assert not set(matching.pairs.values()) & set(wanted)
    assert not set(matching.pairs) & set(matching.unclear)
    shuffled_wanted, shuffled = list(wanted), list(available)
    order.shuffle(shuffled_wanted)  # type: ignore[attr-defined]
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    assert Matching.of(shuffled_wanted, shuffled).pairs == matching.pairs
    if not matching.unclear:
        assert new_names(available, wanted, "x") == {found: name for name, found in matching.pairs.items()}


def test_names_are_not_asked_for_where_each_is_there(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()

    def never() -> tuple[str, ...]:
        raise AssertionError("the names of all videos are not needed")

    assert VideoFinder(tmp_path, never)("a") == tmp_path / "a.mp4"


def test_a_video_file_is_found_by_habits_in_sub_folders_too(tmp_path: Path) -> None:
    for name in ("v_a.mp4", "P01/V_B.Mp4", f"P02/{NFD}.mkv", "c.mp4", "v_d.mkv", "v_d.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    find = VideoFinder(tmp_path, partial(tuple, ["a", "b.avi", NFC, "v_c", "d", "e"]))
    assert find("a") == find("a") == tmp_path / "v_a.mp4"
    assert find("b.avi") == tmp_path / "P01/V_B.Mp4"
    assert find(NFC) == tmp_path / f"P02/{NFD}.mkv"
    assert find("v_c") == tmp_path / "c.mp4"
    assert find("d") == tmp_path / "v_d.mp4"  # of two files of one name the preferred one
    with pytest.raises(FileNotFoundError, match=r"no video 'e' .*; missing: 'e'; there: 'c', 'v_a' and 3 more"):
        find("e")


def test_a_file_is_of_its_own_name_where_folders_do_not_tell_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on macOS and Windows, which find A.mp4 where a.mp4 is asked for."""
    (tmp_path / "A.mp4").touch()

    def anyhow(path: str | Path) -> bool:
        return Path(path).name.lower() in [one.name.lower() for one in tmp_path.iterdir()]

    monkeypatch.setattr("os.path.isfile", anyhow)
    monkeypatch.setattr("os.path.exists", anyhow)
    assert is_file_named(tmp_path / "A.mp4")
    assert not is_file_named(tmp_path / "a.mp4")
    assert VideoFinder(tmp_path, partial(tuple, ["a"]))("a") == tmp_path / "A.mp4"
    find = VideoFinder(tmp_path, partial(tuple, ["a", "A"]))
    assert find("A") == tmp_path / "A.mp4"
    with pytest.raises(FileNotFoundError, match="no video 'a'"):
        find("a")


def test_names_are_compared_without_torch() -> None:
    code = "import bitad.video.names, bitad.data.detections, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
