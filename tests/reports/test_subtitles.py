import re
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bitad.reports.detections import write_srt
from bitad.reports.page import Track

TIME = r"(\d\d+):([0-5]\d):([0-5]\d),(\d{3})"


def cues_of(path):
    """A strict reader: (start, end, lines) with times in milliseconds."""
    text = path.read_text(encoding="utf-8")
    if not text:
        return []
    cues = []
    for number, block in enumerate(text.removesuffix("\n").split("\n\n"), start=1):
        index, times, *lines = block.split("\n")
        assert index == str(number)
        found = re.fullmatch(f"{TIME} --> {TIME}", times)
        assert found
        h1, m1, s1, f1, h2, m2, s2, f2 = map(int, found.groups())
        assert lines
        assert all(lines)
        cues.append((((h1 * 60 + m1) * 60 + s1) * 1000 + f1, ((h2 * 60 + m2) * 60 + s2) * 1000 + f2, lines))
    return cues


def write(path, rows, min_score=0.0):
    segments = np.array([row[:2] for row in rows], float).reshape(-1, 2)
    scores = np.array([row[3] for row in rows], float)
    labels = [row[2] for row in rows]
    track = Track("Detections", "detection", segments, labels, scores, dict.fromkeys(labels, min_score))
    write_srt(path, track)
    return cues_of(path)


def test_cues_come_in_order_with_srt_times(tmp_path):
    cues = write(tmp_path / "a.srt", [(3725.5, 3726.0005, "late", 0.9), (1.0, 2.25, "early", 0.8)])
    assert cues == [(1000, 2250, ["early 0.80"]), (3725500, 3726000, ["late 0.90"])]
    assert "01:02:05,500 --> 01:02:06,000" in (tmp_path / "a.srt").read_text(encoding="utf-8")


def test_overlapping_segments_share_a_cue(tmp_path):
    cues = write(tmp_path / "a.srt", [(0, 4, "sway", 0.5), (1, 2, "open", 0.9)])
    assert cues == [
        (0, 1000, ["sway 0.50"]),
        (1000, 2000, ["open 0.90", "sway 0.50"]),
        (2000, 4000, ["sway 0.50"]),
    ]


def test_a_class_is_named_once_with_its_best_score(tmp_path):
    cues = write(tmp_path / "a.srt", [(0, 4, "sway", 0.5), (1, 2, "sway", 0.3), (4, 5, "sway", 0.5)])
    assert cues == [(0, 5000, ["sway 0.50"])]


def test_a_cue_has_at_most_three_lines(tmp_path):
    cues = write(tmp_path / "a.srt", [(0, 1, f"c{i}", 0.1 * i) for i in range(6)])
    assert cues == [(0, 1000, ["c5 0.50", "c4 0.40", "c3 0.30"])]


def test_what_scores_less_is_left_out(tmp_path):
    assert write(tmp_path / "a.srt", [(0, 1, "a", 0.29), (2, 3, "b", 0.3)], min_score=0.3) == [
        (2000, 3000, ["b 0.30"])
    ]


def test_no_detection_gives_an_empty_file(tmp_path):
    assert write(tmp_path / "a.srt", []) == []
    assert (tmp_path / "a.srt").read_bytes() == b""


def test_a_label_cannot_break_the_file(tmp_path):
    cues = write(tmp_path / "a.srt", [(0, 1, "a\n\n2\n00:00:00,000 --> <i>문 열기", 0.5)])
    assert cues == [(0, 1000, ["a 2 00:00:00,000 --› ‹i›문 열기 0.50"])]


rows = st.lists(
    st.tuples(st.integers(0, 60), st.integers(1, 30), st.sampled_from("abcd"), st.integers(0, 9)), max_size=12
)


@given(rows)
@settings(deadline=None, max_examples=60)
def test_at_every_moment_the_cue_names_the_best_of_what_happens(tmp_path_factory, drawn):
    path = tmp_path_factory.mktemp("srt") / "a.srt"
    rows = [(start / 10, (start + length) / 10, label, score / 10) for start, length, label, score in drawn]
    cues = write(path, rows)
    assert all(a[1] <= b[0] for a, b in pairwise(cues))
    for moment in range(50, 9000, 100):
        best = {}
        for start, end, label, score in rows:
            if start * 1000 <= moment < end * 1000:
                best[label] = max(score, best.get(label, 0))
        wanted = sorted((f"{score:.2f}" for score in best.values()), reverse=True)[:3]
        shown = [cue[2] for cue in cues if cue[0] <= moment < cue[1]]
        lines = shown[0] if shown else []
        assert [line.split()[1] for line in lines] == wanted
        assert all(f"{best[line.split()[0]]:.2f}" == line.split()[1] for line in lines)
