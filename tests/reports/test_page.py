import json
import re
from dataclasses import replace

import av
import numpy as np
import pytest
from chromium import chromium
from hypothesis import given, settings
from hypothesis import strategies as st

from bitad.reports.page import PageVideo, Track, write_page
from bitad.reports.tables import Table

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!-- <b>x",
    "문 열기",
    "a, \"b\" 'c' &amp;",
    "\u2028 $data ${title}",
]
NONE = np.zeros((0, 2))
FEW = Track(
    "F",
    "detection",
    np.array([[0.2, 0.9], [0.4, 1.1], [1.0, 1.6]]),
    ["open", "close", "open"],
    np.array([0.9, 0.5, 0.2]),
)
TRUTH = Track("Ground truth", "ground-truth", np.array([[1.25, 1.75], [0.25, 1.0]]), ["close", "open"])


def write_mp4(path, seconds=2, fps=10):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(seconds * fps):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 12 * i, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def embedded(path):
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="page-data">(.*?)</script>', text).group(1))


def page_of(folder, *videos, title="t", introduction="i", **settings):
    path = folder / "index.html"
    write_page(path, title=title, introduction=introduction, videos=videos, **settings)
    return path


@pytest.fixture(scope="module")
def browser():
    with chromium() as page:
        yield page


def now(browser):
    """Where the play head stands, in seconds."""
    return float(browser.evaluate("document.getElementById('ruler').getAttribute('aria-valuenow')"))


def set_threshold(browser, value):
    browser.evaluate(
        "(() => { const slider = document.getElementById('threshold');"
        f" slider.value = {value}; slider.dispatchEvent(new Event('input')); }})()"
    )


# What is written.


def test_a_page_refers_to_nothing_outside_its_folder(tmp_path):
    video = PageVideo("v", "media/v.mp4", 2.0, [FEW])
    table = Table("T", ("a",), (("x",),))
    text = page_of(tmp_path, video, tables=[table], pictures=[("P", "p 1.png")]).read_text(encoding="utf-8")
    assert not re.search(r"https?:|url\(|@import|import\(|fetch\(", text)
    assert re.findall(r'(?:src|href)="([^"]*)"', text) == [
        "data:,",
        "#videos",
        "#tables",
        "#pictures",
        "p%201.png",
        "p%201.png",
    ]


@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=5))
@settings(deadline=None, max_examples=40)
def test_any_label_survives_embedding(tmp_path_factory, labels):
    labels = [*labels, *HOSTILE]
    track = Track(labels[0], "detection", np.tile([0.0, 1.0], (len(labels), 1)), labels, np.ones(len(labels)))
    path = page_of(tmp_path_factory.mktemp("page"), PageVideo(labels[-1], None, 1.0, [track]))
    data = embedded(path)
    columns = data["videos"][0]["tracks"][0]
    assert [data["classes"][i] for i in columns["label"]] == labels
    assert columns["name"] == labels[0]
    assert path.read_text(encoding="utf-8").count("</script>") == 2


def test_the_best_detections_are_written_and_all_ground_truth(tmp_path, monkeypatch):
    monkeypatch.setattr("bitad.reports.page.TOP_K", 8)
    n = 50
    segments = np.stack([np.arange(n), np.arange(n) + 1.0], 1)
    scores = np.random.default_rng(0).permutation(n) / n
    tracks = [
        Track("d", "detection", segments, ["a"] * n, scores),
        Track("g", "ground-truth", segments[::-1], ["a"] * n),
    ]
    detections, truth = embedded(page_of(tmp_path, PageVideo("v", None, 60, tracks)))["videos"][0]["tracks"]
    assert detections["total"] == n
    assert detections["score"] == sorted(scores, reverse=True)[:8]
    assert detections["start"] == [float(np.flatnonzero(scores == score)[0]) for score in detections["score"]]
    assert truth["start"] == list(range(n))


@pytest.mark.parametrize(
    "path", ["/etc/v.mp4", "https://x.org/v.mp4", "file:///v.mp4", "C:/v.mp4", "a\\v.mp4", ""]
)
def test_media_must_lie_beside_the_page(tmp_path, path):
    with pytest.raises(ValueError, match="not a path relative to the page"):
        PageVideo("v", path, 1.0, [])
    with pytest.raises(ValueError, match="not a path relative to the page"):
        page_of(tmp_path, pictures=[("caption", path)])


def test_bad_tracks_are_refused():
    one = np.array([[0.0, 1.0]])
    for segments, labels, scores, message in (
        (one, ["a", "b"], None, "2 labels"),
        (one, ["a"], np.array([0.1, 0.2]), "1 labels"),
        (one[:, ::-1], ["a"], None, "give start <= end"),
        (one * np.nan, ["a"], None, "segment 0"),
        (np.array([[0.0, np.inf]]), ["a"], None, "segment 0"),
        (one, ["a"], np.array([1.5]), "a score from 0 to 1"),
        (one, ["a"], np.array([np.nan]), "a score from 0 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            Track("t", "detection", segments, labels, scores)
    with pytest.raises(ValueError, match="use one of ground-truth, detection, defect"):
        Track("t", "other", one, ["a"])
    with pytest.raises(ValueError, match="has a duration of nan s"):
        PageVideo("v", None, float("nan"), [])


# What Chromium makes of it.


def test_the_driver_sees_what_goes_wrong_in_a_page(browser, tmp_path):
    path = tmp_path / "bad.html"
    path.write_text("<script>console.error('said'); missing.call()</script><img src='no.png'>", encoding="utf-8")
    browser.open(path)
    browser.wait_for("document.images[0].complete")
    said = " ".join(browser.console)
    assert "error: said" in said
    assert "ReferenceError" in said
    assert "ERR_FILE_NOT_FOUND" in said


@pytest.mark.parametrize("dark", [False, True])
def test_timelines_are_drawn_without_playing_and_nothing_is_complained_about(browser, tmp_path, dark):
    write_mp4(tmp_path / "media" / "v 1.mp4")
    browser.open(page_of(tmp_path, PageVideo("v", "media/v 1.mp4", 2.0, [TRUTH, FEW])), dark=dark)
    browser.wait_for("player.readyState >= 2")
    assert browser.texts("[data-track='0'] [data-segment]") == ["open", "close"]
    assert browser.texts("[data-track='1'] [data-segment]") == ["open", "close"]  # the third scores 0.2 < 0.3
    assert browser.texts(".track-label .about") == ["2 segments", "2 detections"]
    assert browser.texts("#shown") == ["Shown: 2 of 3 detections, those that score at least 0.30."]
    left, right = browser.evaluate(
        "(() => { const plot = document.querySelector('[data-track=\"0\"] .lanes').getBoundingClientRect();"
        " const box = document.querySelector('[data-track=\"0\"] .segment').getBoundingClientRect();"
        " return [(box.left - plot.left) / plot.width, (box.right - plot.left) / plot.width]; })()"
    )
    assert (left, right) == pytest.approx((0.25 / 2, 1.0 / 2), abs=0.005)
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) < 200) == dark
    assert browser.console == []


def test_the_slider_filters_detections_and_leaves_ground_truth(browser, tmp_path):
    browser.open(page_of(tmp_path, PageVideo("v", None, 2.0, [TRUTH, FEW])))
    for threshold, shown in ((0, 3), (0.45, 2), (0.6, 1), (0.95, 0)):
        set_threshold(browser, threshold)
        assert len(browser.texts("[data-track='1'] [data-segment]")) == shown
        assert len(browser.texts("[data-track='0'] [data-segment]")) == 2
    assert browser.texts("[data-track='1'] .empty") == ["nothing scores 0.95; the best is 0.90"]
    assert browser.console == []


def test_detections_are_shown_by_the_scores_of_their_classes_until_the_slider_moves(browser, tmp_path):
    by_class = replace(FEW, min_scores={"open": 0.15, "close": 0.6})
    browser.open(page_of(tmp_path, PageVideo("v", None, 2.0, [TRUTH, by_class])))
    shown = "[data-track='1'] [data-segment]"
    assert browser.texts(shown) == ["open", "open"]
    assert browser.texts("#threshold-value") == ["0.15 to 0.60 by class"]
    set_threshold(browser, 0.4)
    assert browser.texts(shown) == ["open", "close"]
    assert browser.texts("#threshold-value") == ["0.40"]
    browser.click("#by-class")
    assert browser.texts(shown) == ["open", "open"]
    # The best that is detected need not be shown.
    browser.open(
        page_of(tmp_path, PageVideo("v", None, 2.0, [replace(FEW, min_scores={"open": 0.95, "close": 0.9})]))
    )
    assert browser.texts(".empty") == ["nothing reaches the score of its class; the best is 0.90"]
    # Where all classes have one, it is the slider's.
    browser.open(
        page_of(tmp_path, PageVideo("v", None, 2.0, [replace(FEW, min_scores={"open": 0.6, "close": 0.6})]))
    )
    assert browser.texts("#threshold-value") == ["0.60"]
    assert browser.evaluate("document.getElementById('by-class').hidden")
    assert browser.console == []


def test_the_list_of_videos_counts_the_detections_that_are_shown(browser, tmp_path):
    by_class = replace(FEW, min_scores={"open": 0.95, "close": 0.4})
    videos = [PageVideo("a", None, 2.0, [by_class]), PageVideo("b", None, 2.0, [TRUTH, FEW])]
    browser.open(page_of(tmp_path, *videos))
    assert browser.texts("#choice .about") == ["0:02.0 · 1 detection", "0:02.0 · 2 actions"]
    set_threshold(browser, 0.1)
    assert browser.texts("#choice .about") == ["0:02.0 · 3 detections", "0:02.0 · 2 actions"]
    browser.click("#by-class")
    assert browser.texts("#choice .about") == ["0:02.0 · 1 detection", "0:02.0 · 2 actions"]
    assert browser.console == []


def test_what_is_shown_by_class_is_on_the_page_however_many_score_more(tmp_path):
    def columns_of(track):
        return embedded(page_of(tmp_path, PageVideo("v", None, 1.0, [track])))["videos"][0]["tracks"][0]

    rng = np.random.default_rng(0)
    scores = np.append(rng.uniform(0.5, 1, 1500), 0.1)
    labels = [*["common"] * 1500, "rare"]
    segments = np.tile([0.0, 1.0], (1501, 1))
    columns = columns_of(Track("d", "detection", segments, labels, scores, {"rare": 0.05}))
    assert columns["label"].count(1) == 0  # so many are shown that the best are
    track = Track("d", "detection", segments, labels, scores, {"common": 0.9, "rare": 0.05})
    columns = columns_of(track)
    assert len(columns["score"]) == 1000
    assert columns["label"][-1] == 1
    assert columns["score"] == sorted(columns["score"], reverse=True)


def test_clicks_seek_and_the_play_head_follows(browser, tmp_path):
    write_mp4(tmp_path / "v.mp4")
    browser.open(page_of(tmp_path, PageVideo("v", "v.mp4", 2.0, [TRUTH, FEW])))
    browser.wait_for("player.readyState >= 2")
    browser.click("[data-track='0'] [data-segment='1']")
    browser.wait_for("!player.seeking && player.currentTime > 1.2")
    assert browser.evaluate("player.currentTime") == pytest.approx(1.301)  # the first of ten frames a second
    assert browser.texts("#now dd")[0] == "close"
    browser.click("#ruler")
    assert now(browser) == pytest.approx(1.0, abs=0.02)
    assert browser.texts("#now dd") == ["–", "close 0.50"]
    browser.evaluate("player.play()")
    browser.wait_for("player.ended")
    browser.wait_for("document.getElementById('clock').textContent === '0:02.0'")
    assert browser.console == []


def test_the_keyboard_walks_through_segments_and_seeks(browser, tmp_path):
    browser.open(page_of(tmp_path, PageVideo("v", None, 2.0, [TRUTH, FEW])))
    browser.evaluate('document.querySelector(\'[data-track="0"] [tabindex="0"]\').focus()')
    walked = []
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp", "End"):
        browser.press(key)
        walked.append(browser.evaluate("document.activeElement.getAttribute('aria-label')"))
    assert walked == [
        "close, 1.25 – 1.75 s (0.50 s)",
        "close, 1.25 – 1.75 s (0.50 s)",  # the last of its row
        "close, 0.40 – 1.10 s (0.70 s), score 0.50",
        "open, 0.20 – 0.90 s (0.70 s), score 0.90",
        "open, 0.25 – 1.00 s (0.75 s)",
        "close, 1.25 – 1.75 s (0.50 s)",
    ]
    assert browser.texts("#tip:not([hidden])") == ["close1.25 – 1.75 s (0.50 s)Ground truth"]
    browser.press("Enter")
    assert now(browser) == pytest.approx(1.25)
    browser.evaluate("document.getElementById('ruler').focus()")
    browser.press("ArrowLeft")
    assert now(browser) == pytest.approx(0.25)
    assert browser.evaluate("document.querySelectorAll('#timelines [tabindex=\"0\"]').length") == 2


def test_a_missing_video_leaves_a_note_and_working_timelines(browser, tmp_path):
    browser.open(page_of(tmp_path, PageVideo("v", "media/없음 #1.mp4", 2.0, [TRUTH])))
    assert "“media/없음 #1.mp4” was not there" in browser.texts("#media-note:not([hidden])")[0]
    browser.click("[data-track='0'] [data-segment='1']")
    assert now(browser) == pytest.approx(1.25)
    assert browser.console == []


def test_a_video_that_is_taken_away_later_leaves_a_note_too(browser, tmp_path):
    write_mp4(tmp_path / "v.mp4")
    path = page_of(tmp_path, PageVideo("v", "v.mp4", 2.0, [TRUTH]))
    (tmp_path / "v.mp4").unlink()
    browser.open(path)
    browser.wait_for("!document.getElementById('media-note').hidden")
    assert "cannot open “v.mp4”" in browser.texts("#media-note")[0]
    # The browser itself reports the file; the page's script must not add to it.
    assert all("ERR_FILE_NOT_FOUND" in line for line in browser.console)


def test_another_video_can_be_chosen(browser, tmp_path):
    other = PageVideo("b", None, 60.0, [Track("Detections", "detection", NONE, [], np.zeros(0))])
    browser.open(page_of(tmp_path, PageVideo("a", None, 2.0, [TRUTH, FEW]), other, PageVideo("c", None, 3.0, [])))
    assert browser.texts("#choice .about") == ["0:02.0 · 2 actions", "1:00.0 · 0 detections", "0:03.0"]
    assert browser.evaluate("['order', 'judging'].every((each) => document.getElementById(each).hidden)")
    browser.click("[data-video='1']")
    assert browser.texts("[data-track] .empty") == ["nothing detected"]
    browser.click("[data-video='2']")
    assert browser.texts("[data-track]") == []
    browser.click("[data-video='0']")
    assert len(browser.texts("[data-segment]")) == 4
    assert browser.console == []


def test_choosing_a_video_without_media_stops_the_one_that_plays(browser, tmp_path):
    write_mp4(tmp_path / "v.mp4")
    browser.open(page_of(tmp_path, PageVideo("a", "v.mp4", 2.0, [TRUTH]), PageVideo("b", None, 2.0, [TRUTH])))
    browser.wait_for("player.readyState >= 2")
    browser.evaluate("player.play()")
    browser.wait_for("player.currentTime > 0.2")
    browser.click("[data-video='1']")
    browser.wait_for("player.readyState === 0")
    assert now(browser) == 0
    browser.click("[data-video='0']")
    browser.wait_for("player.readyState >= 2")
    assert browser.texts("#media-note:not([hidden])") == []
    assert browser.console == []


def test_one_class_can_be_shown_alone(browser, tmp_path):
    browser.open(page_of(tmp_path, PageVideo("a", None, 2.0, [TRUTH, FEW])))
    browser.click("[data-class='0']")
    assert browser.texts("[data-segment]") == ["close", "close"]
    browser.click("[data-class='0']")
    assert len(browser.texts("[data-segment]")) == 4


def test_hostile_text_is_shown_as_text(browser, tmp_path):
    segments = np.stack([np.arange(len(HOSTILE)), np.arange(len(HOSTILE)) + 0.9], 1)
    track = Track(HOSTILE[1], "detection", segments, HOSTILE, np.ones(len(HOSTILE)))
    path = page_of(
        tmp_path,
        PageVideo(HOSTILE[0], None, 6.0, [track]),
        title=HOSTILE[0],
        introduction="<b>one</b>\n\n$data",
        tables=[Table(HOSTILE[0], (HOSTILE[1],), ((HOSTILE[2],),))],
    )
    browser.open(path)
    assert browser.texts("[data-segment]") == HOSTILE
    assert browser.texts("h1") == [HOSTILE[0]]
    assert browser.texts(".masthead p") == ["<b>one</b>", "$data"]
    assert browser.texts("caption, thead th, tbody th") == [HOSTILE[0], HOSTILE[1], HOSTILE[2]]
    assert browser.evaluate("document.title") == HOSTILE[0]
    assert browser.console == []


def test_five_thousand_detections_are_bounded_and_said(browser, tmp_path):
    rng = np.random.default_rng(0)
    start = rng.uniform(0, 600, 5000)
    segments = np.stack([start, start + rng.uniform(0.5, 20, 5000)], 1)
    labels = [f"class {i}" for i in rng.integers(0, 20, 5000)]
    track = Track("Detections", "detection", segments, labels, rng.uniform(0, 1, 5000), dict.fromkeys(labels, 0.0))
    browser.open(page_of(tmp_path, PageVideo("v", None, 600.0, [track])))
    shown = len(browser.texts("[data-segment]"))
    assert 0 < shown < 1000
    assert browser.texts(".track-label .about") == [f"{shown} detections, no room for {1000 - shown}"]
    assert browser.texts("#shown") == [
        f"Shown: {shown} of 5,000 detections, those that score at least 0.00."
        " The page has the best 1,000 of each row."
    ]
    overlaps = browser.evaluate(
        "(() => { const boxes = [...document.querySelectorAll('.segment')].map((each) => [each.style.top,"
        " parseFloat(each.style.left), parseFloat(each.style.left) + parseFloat(each.style.width)]);"
        " boxes.sort((a, b) => parseFloat(a[0]) - parseFloat(b[0]) || a[1] - b[1]);"
        " const overlap = (one, other) => one[0] === other[0] && one[2] > other[1] + 1e-3;"
        " return boxes.filter((box, i) => i && overlap(boxes[i - 1], box)).length; })()"
    )
    assert overlaps == 0
    assert browser.console == []


@pytest.mark.parametrize("width", [360, 800, 1600])
def test_no_width_makes_the_page_scroll_sideways(browser, tmp_path, width):
    videos = [PageVideo(f"video_with_a_long_name_{i}", None, 2.0, [TRUTH, FEW]) for i in range(6)]
    table = Table("A table", tuple(f"column {i}" for i in range(12)), (tuple(range(12)),))
    browser.open(page_of(tmp_path, *videos, tables=[table]), width=width)
    root = "document.documentElement"
    assert browser.evaluate(f"{root}.scrollWidth <= {root}.clientWidth")
    browser.click("#zoom-in")
    assert browser.evaluate(f"{root}.scrollWidth <= {root}.clientWidth")
    timelines = "document.getElementById('scroll')"
    assert browser.evaluate(f"{timelines}.scrollWidth > 1.3 * {timelines}.clientWidth")
    assert browser.console == []


def test_a_page_without_videos_is_a_report(browser, tmp_path):
    browser.open(page_of(tmp_path, tables=[Table("T", ("a",), ((1.5,),))]))
    assert browser.evaluate("document.getElementById('videos').hidden")
    assert browser.texts("#tables tbody th") == ["1.50"]
    assert browser.console == []
