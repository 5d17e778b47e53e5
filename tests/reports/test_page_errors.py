"""The page as a tool: judgements, errors, the list of videos, keys, loops and links, driven in Chromium."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from builders import numbered_picture
from chromium import Page, chromium

from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.detections import Detections, read_detections
from bitad.data.formats.database import read_annotations
from bitad.evaluation.diagnosis import KINDS, classify
from bitad.evaluation.mean_average_precision import evaluate
from bitad.reports.colours import colours_of
from bitad.reports.page import TIOU, PageVideo, Track, write_page
from bitad.reports.page_videos import page_videos, worst_first
from bitad.reports.tables import Table
from bitad.video.writer import write_video

THUMOS = Path(__file__).parents[2] / "../shared/data/thumos14"
Rows = list[tuple[float, float, str, float]]

CLASSES = ("close", "open")
TRUTH = {
    "good": [(1.0, 2.0, "open")],
    "bad": [(1.0, 2.0, "open"), (3.0, 4.0, "close"), (5.0, 6.0, "open")],
    "none": [],
    "10 fair": [(1.0, 2.0, "close"), (4.0, 5.0, "open")],
}
F: dict[str, Rows] = {
    "good": [(1.0, 2.0, "open", 0.9)],
    "bad": [
        (1.0, 2.0, "open", 0.9),
        (1.1, 2.0, "open", 0.8),
        (3.0, 4.0, "open", 0.7),
        (3.0, 3.45, "close", 0.6),
        (3.0, 3.35, "open", 0.5),
        (8.0, 9.0, "open", 0.4),
        (5.0, 6.0, "open", 0.2),
    ],
    "none": [(1.0, 2.0, "open", 0.35)],
    "10 fair": [(1.0, 2.0, "close", 0.9)],
}
B: dict[str, Rows] = {"good": [(5.0, 6.0, "open", 0.9)], "bad": [(5.0, 6.0, "open", 0.9)]}
# The row "F" of the video "bad", in order of start and then of score.
OF_BAD = list(KINDS)


def truth(of: dict[str, list[tuple[float, float, str]]], duration_s: float = 10.0) -> Annotations:
    videos = {}
    for name, rows in of.items():
        segments = np.array([row[:2] for row in rows], np.float64).reshape(-1, 2)
        videos[name] = AnnotatedVideo(name, "test", duration_s, segments, tuple(row[2] for row in rows))
    return Annotations(videos, CLASSES)


def found(rows: dict[str, Rows]) -> Detections:
    columns = {}
    for name, each in rows.items():
        segments = np.array([row[:2] for row in each]).reshape(-1, 2)
        labels = np.array([CLASSES.index(row[2]) for row in each], np.int64)
        columns[name] = (segments, np.array([row[3] for row in each]), labels)
    return Detections.from_videos(columns, classes=CLASSES)


def written(folder: Path, videos: list[PageVideo], tables: tuple[Table, ...] = ()) -> Path:
    path = folder / "index.html"
    write_page(path, title="A page", introduction="Of tests.", videos=videos, tables=tables)
    return path


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four videos and two results, without media."""
    wide = Table("Wide", ("result", *(f"column {i}" for i in range(30))), (("F", *range(30)),))
    folder = tmp_path_factory.mktemp("page")
    return written(folder, page_videos(truth(TRUTH), {"F": found(F), "B": found(B)}), (wide,))


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 30 frames a second, and actions that begin at its frames, as rounded times or between them."""
    folder = tmp_path_factory.mktemp("film")
    write_video(folder / "v.mp4", map(numbered_picture, range(120)), fps=30, gop=15, b_frames=2)
    starts = [(0.233, 0.6), (0.4, 0.9), (1.267, 1.6), (1.28, 1.7), (2.033, 2.2), (3.7, 4.0)]
    rows = [(start, end, "open") for start, end in starts]
    video = truth({"v": rows}, duration_s=4.0)
    result = found({"v": [(*row, 0.9) for row in rows]})
    return written(folder, page_videos(video, {"F": result}, media="{}.mp4".format))


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chromium() as page:
        yield page


def choose(browser: Page, name: str) -> None:
    browser.evaluate(f"document.querySelector('#choice button[title=\"{name}\"]').click()")


def set_value(browser: Page, selector: str, value: object, event: str = "change") -> None:
    browser.evaluate(
        f"(() => {{ const control = document.querySelector({json.dumps(selector)});"
        f" control.value = {json.dumps(str(value))}; control.dispatchEvent(new Event('{event}')); }})()"
    )


def marks(browser: Page, row: int) -> list[str | None]:
    """What the segments of a row are marked as, in their order in the row's columns."""
    found: list[str | None] = browser.evaluate(
        f"[...document.querySelectorAll('[data-track=\"{row}\"] .segment')]"
        ".sort((a, b) => a.dataset.segment - b.dataset.segment).map((each) => each.dataset.mark ?? null)"
    )
    return found


def videos(browser: Page) -> list[str]:
    return browser.texts("#choice .name")


def chosen(browser: Page) -> str:
    return browser.texts("#choice [aria-pressed='true'] .name")[0]


def now(browser: Page) -> float:
    return float(browser.evaluate("document.getElementById('ruler').getAttribute('aria-valuenow')"))


def selected(browser: Page) -> str:
    found: str = browser.evaluate("document.querySelector('.segment.selected')?.getAttribute('aria-label') ?? ''")
    return found


# Judgements.


def test_each_detection_is_marked_by_its_kind_and_each_missed_segment(browser: Page, page: Path) -> None:
    browser.open(page)
    choose(browser, "bad")
    set_value(browser, "#judged", "F")
    assert marks(browser, 1) == OF_BAD
    assert marks(browser, 0) == [None, "missed", "missed"]
    assert browser.texts("#marks b") == ["1", "1", "1", "1", "1", "1", "2"]
    assert "close, 3.00 – 3.45 s (0.45 s), score 0.60, localization at tIoU 0.5" in browser.evaluate(
        "[...document.querySelectorAll('.segment')].map((each) => each.ariaLabel)"
    )
    # A segment that only a detection below the minimum score matches is missed, until that detection is shown.
    labels = browser.evaluate(
        "[...document.querySelectorAll('.segment[data-mark=\"missed\"]')].map((e) => e.ariaLabel)"
    )
    assert [label.partition(", missed ")[2] for label in labels] == [
        "by F at tIoU 0.5: no detection matches",
        "by F at tIoU 0.5: the match scores only 0.20",
    ]
    set_value(browser, "#threshold", 0.1, "input")
    assert marks(browser, 1) == [*OF_BAD, "true_positive"]
    assert marks(browser, 0) == [None, "missed", None]
    # What is missed depends on the result.
    set_value(browser, "#judged", "B")
    assert marks(browser, 0) == ["missed", "missed", None]
    assert browser.console == []


def test_the_marks_are_those_of_the_diagnosis_at_every_tiou(browser: Page, page: Path) -> None:
    browser.open(page)
    choose(browser, "bad")
    set_value(browser, "#threshold", 0, "input")
    kinds = classify(truth(TRUTH), found(F), tiou=TIOU)[1:8]  # of "bad"
    seen = set()
    for k, tiou in enumerate(TIOU):
        set_value(browser, "#tiou", k)
        assert marks(browser, 1) == [KINDS[kind] for kind in kinds[:, k]], tiou
        seen.add(tuple(kinds[:, k]))
    assert len(seen) > 2
    assert browser.texts("#tiou option") == ["0.3", "0.4", "0.5", "0.6", "0.7"]


def test_videos_are_listed_worst_first_or_by_name(browser: Page, page: Path) -> None:
    browser.open(page)
    assert browser.evaluate("document.getElementById('judged').value") == "F"  # the better one
    assert videos(browser) == ["bad", "10 fair", "good", "none"]
    assert chosen(browser) == "bad"
    expected = {}
    for name, rows in TRUTH.items():
        if rows:
            of_video = evaluate(truth({name: rows}), found({name: F[name]}), tiou=TIOU)
            expected[name] = [f"mAP {100 * figure:.1f}" for figure in of_video.map_per_tiou]
    for k in range(len(TIOU)):
        set_value(browser, "#tiou", k)
        listed = dict(zip(videos(browser), browser.texts("#choice .ap"), strict=True))
        assert listed == {"none": "no AP"} | {name: each[k] for name, each in expected.items()}
    set_value(browser, "#order", "name")
    assert videos(browser) == ["10 fair", "bad", "good", "none"]
    set_value(browser, "#order", "worst")
    set_value(browser, "#judged", "B")
    assert videos(browser) == ["good", "10 fair", "bad", "none"]
    assert chosen(browser) == "bad"


def test_the_list_without_the_page_is_in_the_same_order() -> None:
    of = page_videos(truth(TRUTH), {"F": found(F), "B": found(B)})
    assert [video.name for video in of] == list(TRUTH)
    assert [video.name for video in worst_first(of)] == ["bad", "10 fair", "good", "none"]
    assert page_videos(Annotations({}, ()), {}) == []


def test_what_is_not_evaluated_is_not_missed_and_many_rows_are_shared_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitad.reports.page.MOST_ROWS", 60)
    rows = [(1.0, 2.0, "open", round(0.9 - 0.01 * k, 2)) for k in range(20)]
    of = page_videos(
        truth({"v": [(1.0, 2.0, "open"), (4.0, 4.0, "open")], "w": []}), {"F": found({"v": rows}), "B": found({})}
    )
    text = written(tmp_path, of).read_text(encoding="utf-8")
    embedded = re.search(r'<script type="application/json" id="page-data">(.*?)</script>', text)
    assert embedded is not None
    data = json.loads(embedded[1])
    ground_truth, first, second = data["videos"][0]["tracks"]
    assert ground_truth["matched"] == {"F": [[0.9, None]] * 5, "B": [[-1, None]] * 5}
    assert first["score"] == [row[3] for row in rows[:15]]  # a quarter of 60
    assert first["kinds"] == ["0" + 14 * "1"] * 5
    assert (first["total"], second["total"], data["most"]) == (20, 0, 15)
    assert [video["ap"] for video in data["videos"]] == [{"F": [100] * 5, "B": [0] * 5}, {}]


def test_the_search_finds_names_and_classes(browser: Page, page: Path) -> None:
    browser.open(page)
    for sought, expected in (
        ("GOOD", ["good"]),
        ("o", ["bad", "10 fair", "good", "none"]),  # also "open"
        ("close", ["bad", "10 fair"]),
        ("zzz", []),
        ("", ["bad", "10 fair", "good", "none"]),
    ):
        set_value(browser, "#search", sought, "input")
        assert videos(browser) == expected, sought
    set_value(browser, "#search", "fair", "input")
    assert browser.texts("#list-count") == ["1 of 4 videos"]
    browser.evaluate("document.getElementById('search').focus()")
    browser.press("Enter")
    assert chosen(browser) == "10 fair"
    assert browser.console == []


def test_rows_have_the_colours_of_the_figures_and_one_caption(browser: Page, page: Path) -> None:
    for dark in (False, True):
        browser.open(page, dark=dark)
        for name, colour in colours_of(["F", "B"]).items():
            found = browser.evaluate(
                "[...document.querySelectorAll('.row .name, th')]"
                f".filter((each) => each.textContent === '{name}').map((each) =>"
                " getComputedStyle(each, '::before').backgroundColor.match(/\\d+/g).map(Number))"
            )
            wanted = colour.dark if dark else colour.light
            in_tables = 1 if name == "F" else 0
            assert found == [[int(wanted[at : at + 2], 16) for at in (1, 3, 5)]] * (1 + in_tables)
    assert browser.texts(".track-label .about") == ["3 segments", "6 detections", "1 detection"]
    assert browser.texts("#shown") == ["Shown: 7 of 8 detections, those that score at least 0.30."]


# Errors, keys, loops and links.


def test_n_goes_to_the_next_error_and_on_to_the_next_video(browser: Page, page: Path) -> None:
    browser.open(page)
    browser.evaluate("document.activeElement.blur()")
    visited = []
    for _ in range(9):
        browser.press("n")
        visited.append((chosen(browser), selected(browser).split(" at tIoU")[0].rpartition(", ")[2], now(browser)))
    in_bad = [
        ("bad", "double detection", 1.1),
        ("bad", "missed by F", 3.0),
        ("bad", "wrong label", 3.0),
        ("bad", "localization", 3.0),
        ("bad", "confusion", 3.0),
        ("bad", "missed by F", 5.0),
        ("bad", "background", 8.0),
    ]
    assert sorted(visited[:7], key=str) == sorted(in_bad, key=str)
    assert [each[2] for each in visited[:7]] == [each[2] for each in in_bad]
    assert [each[0] for each in visited[7:]] == ["10 fair", "none"]  # "good" has none
    assert browser.texts("#error-note") == [
        "Error 1 of 1 in none: open, 1.00 – 2.00 s (1.00 s), score 0.35, background at tIoU 0.5."
    ]
    for _ in range(2):
        browser.press("N", shift=True)
    assert (chosen(browser), now(browser)) == ("bad", 8.0)
    browser.press("n")
    browser.press("n")
    browser.press("n")  # after the last video, the first one
    assert (chosen(browser), now(browser)) == ("bad", 1.1)
    # From the play head, where it has left the error; by the place of the key on other keyboards.
    browser.evaluate("document.getElementById('ruler').focus()")
    browser.press("End")
    browser.press("\u315c", shift=True, code="KeyN")
    assert (chosen(browser), now(browser)) == ("bad", 8.0)
    # Within what the search finds.
    set_value(browser, "#search", "good", "input")
    choose(browser, "good")
    browser.press("n")
    assert browser.texts("#error-note") == ["F has no error that is shown in 1 video."]
    assert chosen(browser) == "good"
    # From outside of what it finds.
    for shift, expected in ((False, "bad"), (True, "10 fair")):
        set_value(browser, "#search", "close", "input")
        browser.press("N" if shift else "n", shift=shift)
        assert chosen(browser) == expected
        set_value(browser, "#search", "", "input")
        choose(browser, "good")
    assert browser.console == []


def test_keys_of_the_page_do_nothing_while_somebody_types(browser: Page, page: Path) -> None:
    browser.open(page)
    browser.press("/")
    assert browser.evaluate("document.activeElement.id") == "search"
    for key in ("n", "l", ".", "?", " ", "ArrowRight"):
        browser.press(key)
    assert browser.evaluate("document.getElementById('search').value") == "nl.? "
    assert (now(browser), selected(browser), browser.evaluate("document.getElementById('keys').open")) == (
        0,
        "",
        False,
    )


def test_arrows_and_frame_steps_move_the_play_head(browser: Page, film: Path) -> None:
    browser.open(film)
    browser.wait_for("player.readyState >= 2")
    for key, shift, expected in (
        ("ArrowRight", False, 1.0),
        ("ArrowRight", False, 2.0),
        ("ArrowLeft", False, 1.0),
        (".", False, 1 + 1 / 30),
        (".", False, 1 + 2 / 30),
        (",", False, 1 + 1 / 30),
        ("ArrowRight", True, 4.0),  # the end
        ("ArrowLeft", True, 0.0),
        (",", False, 0.0),
    ):
        browser.press(key, shift=shift)
        assert now(browser) == pytest.approx(expected, abs=0.01), key
    browser.press("?")
    assert browser.evaluate("document.getElementById('keys').open")
    browser.press("ArrowRight")
    assert now(browser) == pytest.approx(0, abs=0.01)
    browser.press("?")
    assert not browser.evaluate("document.getElementById('keys').open")
    assert browser.console == []


def test_space_plays_and_pauses_but_not_where_a_control_uses_it(browser: Page, film: Path) -> None:
    browser.open(film)
    browser.wait_for("player.readyState >= 2")
    browser.click("#zoom-in")  # a pointer leaves its focus there
    browser.press(" ")
    browser.wait_for("!player.paused")
    browser.press(" ")
    browser.wait_for("player.paused")
    assert browser.texts("#zoom-value") == ["2×"]
    browser.press("Tab")
    browser.evaluate("document.getElementById('zoom-in').focus()")
    browser.press(" ")
    assert browser.texts("#zoom-value") == ["4×"]
    assert browser.evaluate("player.paused")
    browser.evaluate("document.querySelector('[data-track=\"0\"] .segment').focus()")
    browser.press(" ")
    browser.wait_for("!player.paused")
    browser.press(" ")


def test_a_click_shows_a_frame_within_the_segment(browser: Page, film: Path) -> None:
    browser.open(film)
    browser.wait_for("player.readyState >= 2")
    track = "JSON.parse(document.getElementById('page-data').textContent).videos[0].tracks[0]"
    starts, ends = browser.evaluate(f"[{track}.start, {track}.end]")
    browser.evaluate(
        "(() => { const note = (_, data) => { window.shown = data.mediaTime; player.requestVideoFrameCallback(note); };"
        " player.requestVideoFrameCallback(note); })()"
    )
    for segment, (start, end) in enumerate(zip(starts, ends, strict=True)):
        browser.click(f"[data-track='0'] [data-segment='{segment}']")
        browser.wait_for(
            f"!player.seeking && {start - 0.001} <= window.shown && window.shown < {end}", timeout_s=5
        )
        assert browser.evaluate("window.shown") - 1 / 30 < start - 0.0005  # the first one
        assert "open" in browser.texts("#now dd")[0]


def test_a_segment_repeats_until_it_is_left(browser: Page, film: Path) -> None:
    browser.open(film)
    browser.wait_for("player.readyState >= 2")
    assert browser.evaluate("document.getElementById('loop').disabled")
    browser.press("l")  # nothing is selected
    browser.click("[data-track='0'] [data-segment='4']")  # 0.17 s
    browser.evaluate("window.seeks = 0; player.addEventListener('seeked', () => { window.seeks += 1; })")
    browser.press("l")
    browser.wait_for("window.seeks > 3 && !player.paused")
    assert browser.evaluate("document.getElementById('loop').ariaPressed") == "true"
    assert 1.9 < browser.evaluate("player.currentTime") < 2.9
    browser.press("ArrowRight")  # leaves it
    browser.wait_for("document.getElementById('loop').ariaPressed === 'false'")
    browser.wait_for("player.ended")
    # Also where the segment ends with the video.
    browser.click("[data-track='0'] [data-segment='5']")
    browser.evaluate("window.seeks = 0")
    browser.click("#loop")
    browser.wait_for("window.seeks > 2")
    browser.press("l")
    browser.wait_for("player.ended")
    assert browser.console == []


def test_the_address_is_a_link_to_the_moment(browser: Page, page: Path) -> None:
    browser.open(page)
    assert browser.evaluate("location.hash") == ""
    choose(browser, "10 fair")
    browser.click("[data-track='0'] [data-segment='1']")
    link = "#video=10%20fair&t=4.000"
    browser.wait_for(f"location.hash === '{link}'")
    assert browser.evaluate("document.getElementById('clock').getAttribute('href')") == link
    browser.open(page, fragment=link)
    assert (chosen(browser), now(browser)) == ("10 fair", 4)
    browser.evaluate("location.hash = '#video=good&t=1.5'")
    browser.wait_for("document.querySelector('#clock').textContent === '0:01.5'")
    assert chosen(browser) == "good"
    for other in ("#video=gone&t=1", "#video=%E0%A4%A&t=1", "#tables", "#video=bad"):
        browser.evaluate(f"location.hash = '{other}'")
        assert (chosen(browser), now(browser)) == ("good", 1.5)
    assert browser.console == []


def test_a_link_is_restored_once_the_video_has_loaded(browser: Page, film: Path) -> None:
    browser.open(film, fragment="#video=v&t=2.100")
    browser.wait_for("player.readyState >= 2 && !player.seeking")
    assert browser.evaluate("player.currentTime") == pytest.approx(2.1)


def test_a_filter_never_leaves_an_empty_view(browser: Page, tmp_path: Path) -> None:
    rows = [(float(start), start + 1.0, "close") for start in range(60)] + [(590.0, 591.0, "open")]
    one = truth({"v": rows}).videos["v"]
    video = PageVideo("v", None, 600.0, [Track("Ground truth", "ground-truth", one.segments, one.labels)])
    browser.open(written(tmp_path, [video]))
    for _ in range(4):
        browser.click("#zoom-in")
    in_view = (
        "(() => { const area = document.getElementById('scroll').getBoundingClientRect();"
        " const label = document.querySelector('.track-label').getBoundingClientRect().right;"
        " return [...document.querySelectorAll('.segment')].some((each) => { const box = each.getBoundingClientRect();"
        " return box.left < area.right && box.right > label; }); })()"
    )
    assert browser.evaluate(in_view)
    browser.click("[data-class='1']")
    assert browser.texts(".segment") == ["open"]
    assert browser.evaluate(in_view)
    browser.click("#zoom-in")
    assert browser.evaluate(in_view)
    browser.click("[data-class='0']")
    assert len(browser.texts(".segment")) == 60
    assert browser.evaluate(in_view)
    assert browser.console == []


# What everybody can use.


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False), (390, True)])
def test_axe_finds_nothing(browser: Page, page: Path, width: int, dark: bool) -> None:
    found = importlib.util.find_spec("axe_core_python")
    if found is None or not found.submodule_search_locations:
        reason = "axe-core is not installed; `pip install axe-core-python`"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    script = Path(found.submodule_search_locations[0], "axe.min.js").read_text(encoding="utf-8")
    browser.open(page, width=width, dark=dark)
    browser.click("#zoom-in")
    browser.press("n")
    browser.evaluate(f"{script};0")
    said = (
        "axe.run().then((all) => all.violations.map("
        "(each) => [each.id, each.nodes.map(({ html, failureSummary }) => [html, failureSummary])]))"
    )
    assert browser.evaluate(said) == []
    browser.press("?")
    assert browser.evaluate(said) == []
    # It does find what it should.
    browser.evaluate("document.getElementById('search').removeAttribute('aria-label')")
    browser.evaluate("document.getElementById('search').placeholder = ''")
    browser.press("?")
    assert [each[0] for each in browser.evaluate(said)] == ["label"]
    assert browser.console == []


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_from_its_ground(browser: Page, page: Path, dark: bool) -> None:
    browser.open(page, dark=dark)
    choose(browser, "bad")
    ratios = browser.evaluate(
        """(() => {
          const brush = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
          const luminance = (...layers) => {
            for (const layer of layers) { brush.fillStyle = layer; brush.fillRect(0, 0, 1, 1); }
            const [r, g, b] = [...brush.getImageData(0, 0, 1, 1).data].slice(0, 3).map((each) => each / 255).map(
              (each) => (each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const own = (each) => getComputedStyle(each).backgroundColor;
          const grounds = (each) => (each ? [...grounds(each.parentElement), own(each)] : []);
          const chosen = ".segment:not(.narrow), .sign, .legend button, .about, .ap, .marks li, #shown, .chip, .empty";
          return [...document.querySelectorAll(chosen)].map((each) => {
            const ground = grounds(each);
            const [a, b] = [luminance(...ground), luminance(...ground, getComputedStyle(each).color)];
            return [each.className || each.tagName, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
          });
        })()"""
    )
    assert len({name for name, _ in ratios}) > 5
    assert [each for each in ratios if each[1] < 4.5] == []


def test_a_narrow_page_has_every_control(browser: Page, page: Path) -> None:
    browser.open(page, width=390, height=844)
    root = "document.documentElement"
    assert browser.evaluate(f"{root}.scrollWidth <= {root}.clientWidth")
    outside = browser.evaluate(
        "[...document.querySelectorAll('button:not(.segment), input, select')].filter((each) => {"
        " const box = each.getBoundingClientRect(); return box.width > 0 && "
        " (box.left < 0 || box.right > innerWidth); }).length"
    )
    assert outside == 0
    browser.click("#next-error")
    assert now(browser) == pytest.approx(1.1)
    choose(browser, "good")
    browser.click("[data-track='0'] .segment")
    assert now(browser) == 1
    set_value(browser, "#search", "fair", "input")
    assert videos(browser) == ["10 fair"]
    assert browser.console == []


def test_a_page_of_a_large_test_set_opens_at_once(browser: Page, tmp_path: Path) -> None:
    if not THUMOS.is_dir():
        pytest.skip(
            "THUMOS14's ground truth and detections, ../shared/data/thumos14, are not beside this checkout"
        )
    annotations = read_annotations(THUMOS / "thumos14.json.gz").subset("Test").only_classes()
    detections = read_detections(THUMOS / "actionformer_detections.json.gz").forward()
    path = written(tmp_path, page_videos(annotations, {"F": detections, "B": detections}))
    assert path.stat().st_size < 25e6
    seconds = []
    for _ in range(3):  # other tests keep the processor busy
        before = time.monotonic()
        browser.open(path)
        browser.wait_for("document.querySelector('.segment')")
        seconds.append(time.monotonic() - before)
    assert min(seconds) < 2
    assert len(videos(browser)) == len(annotations.videos) > 200
    figures = [float(text.split()[1]) for text in browser.texts("#choice .ap")]
    assert figures == sorted(figures)
    browser.press("n")
    assert re.match(r"Error \d+ of \d+ in video_test_\d+: ", browser.texts("#error-note")[0])
    assert browser.console == []
