"""Scores of whole videos: the forms of their files, and a slow reference of how they name candidates."""

import gzip
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitad.inference.postprocess import Candidates
from bitad.inference.video_scores import VideoScores, read_video_scores

CLASSES = ["run", "jump", "throw"]
NUMBERS = {"abc": [0.1, 0.7, 0.2], "v_def": [0.5, 0.0, 0.5]}

# The same scores in every public form.
FORMS = {
    "CUHK": {"results": NUMBERS, "class": CLASSES},
    "OpenTAD": {"results": NUMBERS, "classes": CLASSES},
    "TCANet": {"results": {video: [scores] for video, scores in NUMBERS.items()}, "class": CLASSES},
    "by name": {
        "results": {video: dict(zip(CLASSES, scores, strict=True)) for video, scores in NUMBERS.items()},
        "class": CLASSES,
    },
    "ActivityNet": {
        "version": "VERSION 1.3",
        "results": {
            video: [{"label": n, "score": s} for n, s in zip(CLASSES, scores, strict=True) if s]
            for video, scores in NUMBERS.items()
        },
        "external_data": {},
    },
}


@pytest.fixture
def written(tmp_path):
    def write(content, name="scores.json"):
        path = tmp_path / name
        text = json.dumps(content).encode()
        path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
        return path

    return write


def candidates(*rows: tuple[float, float, float, int]) -> Candidates:
    table = np.array(rows, np.float64).reshape(-1, 4)
    return Candidates(table[:, :2], table[:, 2], table[:, 3].astype(np.int64))


# Reading


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["scores.json", "scores.json.gz"])
def test_all_forms_say_the_same(written, form, name):
    scores = read_video_scores(written(FORMS[form], name)).with_classes(CLASSES)
    assert scores.classes == tuple(CLASSES)
    assert set(scores.scores) == set(NUMBERS)
    for video, numbers in NUMBERS.items():
        assert scores.of_video(video).tolist() == numbers


def test_a_video_of_which_nothing_is_mentioned_scores_nothing(written):
    scores = read_video_scores(written({"results": {"a": [{"label": "run", "score": 0.5}], "b": [], "c": {}}}))
    assert [scores.of_video(video).tolist() for video in "abc"] == [[0.5], [0], [0]]
    assert len(scores.label(candidates((0, 1, 0.5, 0)), "b")) == 0


def test_names_with_and_without_prefix_mean_the_same_video(written):
    scores = read_video_scores(written(FORMS["CUHK"])).under_names(["v_abc", "def"])
    assert scores.of_video("v_abc").tolist() == NUMBERS["abc"]
    assert scores.of_video("def").tolist() == NUMBERS["v_def"]


def test_a_name_as_it_stands_comes_before_the_one_with_a_prefix(written):
    scores = read_video_scores(written({"results": {"v_x": [1.0], "x": [0.5]}, "class": ["run"]})).under_names(
        ["v_x", "x"]
    )
    assert scores.of_video("x").tolist() == [0.5]
    assert scores.of_video("v_x").tolist() == [1.0]


def test_the_data_sets_classes_choose_and_order_the_columns(written):
    scores = read_video_scores(written(FORMS["CUHK"])).with_classes(["throw", "run"])
    assert scores.of_video("abc").tolist() == [0.2, 0.1]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([], 'no "results" object'),
        ({"results": {}}, 'no "results" object'),
        ({"results": {"a": [1.0]}}, 'video a has scores without names, and the file has no "class" list of names'),
        ({"results": {"a": [1.0]}, "class": CLASSES}, "video a has 1 scores for the 3 classes"),
        (
            {"results": {"a": [1.0, None, 2.0]}, "class": CLASSES},
            "video a: class 'jump' has the score None, no number from 0 up",
        ),
        ({"results": {"a": [1.0, math.nan, 2.0]}, "class": CLASSES}, "video a: class 'jump' has the score nan"),
        ({"results": {"a": [1.0, True, 2.0]}, "class": CLASSES}, "video a: class 'jump' has the score True"),
        ({"results": {"a": 0.5}, "class": CLASSES}, "video a: 0.5 are not scores"),
        ({"results": {"a": [{"label": "run"}]}}, "video a: class 'run' has the score None"),
        ({"results": {"a": [{"label": "run", "score": 1}] * 2}}, "video a scores a class twice"),
        ({"results": {"a": {"fly": 1}}, "class": CLASSES}, "video a scores fly, which the file's list"),
        ({"results": {"a": [1.0, -4.0, 2.0]}, "class": CLASSES}, "video a: class 'jump' has the score -4.0"),
        ({"results": {"a": [1.0]}, "class": "run"}, "class 'run' is not a list of names that"),
        (
            {"results": {"a": [1.0, 2.0]}, "class": ["run", "run"]},
            r"class \['run', 'run'\] is not a list of names that occur once",
        ),
    ],
)
def test_defects_are_named_with_file_and_video(written, content, says):
    with pytest.raises(ValueError, match=says) as error:
        read_video_scores(written(content))
    assert "scores.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_what_there_are_no_scores_of_is_named_with_the_file(written, tmp_path):
    scores = read_video_scores(written(FORMS["CUHK"]))
    with pytest.raises(ValueError, match=r"scores\.json: no scores of video xyz among those of 2 videos"):
        scores.label(candidates((0, 1, 0.5, 0)), "xyz")
    with pytest.raises(
        ValueError, match=r"scores\.json: no scores of class fly; its classes are run, jump, throw"
    ):
        scores.with_classes(["run", "fly"])
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_video_scores(tmp_path / "missing.json")


# Naming


def slow_label(found, of_video, top_k):
    """Candidate by candidate and class by class; of equal scores the likelier class and the earlier candidate first."""
    ranked = sorted(range(len(of_video)), key=lambda label: -of_video[label])[:top_k]
    rows = []
    for label in ranked:
        for start, end, score, _ in found:
            if of_video[label] > 0:
                rows.append((start, end, math.sqrt(score * of_video[label]), label))
    return sorted(rows, key=lambda row: -row[2])


sixths = st.integers(0, 6).map(lambda n: n / 6)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(10, 20), sixths, st.integers(0, 2)), max_size=8),
    st.lists(sixths, min_size=1, max_size=5),
    st.integers(1, 6),
)
@settings(deadline=None)
def test_candidates_are_named_as_by_the_slow_reference(found, of_video, top_k):
    scores = VideoScores("f", tuple(map(str, range(len(of_video)))), {"u": np.array(of_video)})
    named = scores.label(candidates(*found), "u", top_k=top_k)
    expected = slow_label(found, of_video, top_k)
    assert len(named) == len(expected)
    assert list(map(tuple, named.segments.tolist())) == [row[:2] for row in expected]
    np.testing.assert_allclose(named.scores, [row[2] for row in expected])
    assert named.labels.tolist() == [row[3] for row in expected]
    assert named.labels.dtype == np.int64


def test_the_two_likeliest_classes_name_every_segment():
    scores = VideoScores("f", tuple(CLASSES), {"u": np.array([0.04, 0.64, 0.16])})
    named = scores.label(candidates((0, 5, 0.25, 0), (7, 9, 0.01, 1)), "u")
    assert [CLASSES[label] for label in named.labels] == ["jump", "throw", "jump", "throw"]
    np.testing.assert_allclose(named.scores, [0.4, 0.2, 0.08, 0.04])
    assert named.segments.tolist() == [[0, 5], [0, 5], [7, 9], [7, 9]]


def test_the_rank_is_that_of_the_product():
    rng = np.random.default_rng(0)
    of_video, found = rng.random(4), rng.random(20)
    scores = VideoScores("f", tuple("abcd"), {"u": of_video})
    segments = np.stack([np.arange(20.0), np.arange(20.0) + 1], axis=1)
    named = scores.label(Candidates(segments, found, np.zeros(20, np.int64)), "u", top_k=4)
    product = of_video[named.labels] * found[named.segments[:, 0].astype(int)]
    assert (np.diff(product) <= 0).all()
    np.testing.assert_allclose(named.scores**2, product)


def test_at_least_one_class_names_a_segment():
    scores = VideoScores("f", ("run",), {"u": np.array([0.5])})
    with pytest.raises(ValueError, match="top 0 classes of a video label nothing"):
        scores.label(candidates(), "u", top_k=0)
    assert len(scores.label(candidates(), "u")) == 0
