"""The demo from end to end: smaller than what users run, but large enough that its claims must hold."""

from pathlib import Path

import pytest
from chromium import chromium

from bitad.cli import main
from bitad.demo import Scale, Trainings, run_demo
from bitad.demo.playroom import CLASSES, REVERSED, kind_of

MIDDLING = Scale(
    "middling",
    training=24,
    validation=10,
    overrides=("training.epochs=8", "training.evaluate_every=8"),
    pair_overrides=("training.epochs=2", "training.evaluate_every=2"),
)
# Everything that the full demo does, on next to nothing.
SHORT = ("training.epochs=1", "training.evaluate_every=1", "training.warmup_epochs=0")
COMPLETE = Scale(
    "complete",
    training=2,
    validation=2,
    seeds=2,
    experiments=("1", "3-1"),
    ablations=True,
    overrides=SHORT,
    pair_overrides=SHORT,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    return out, run_demo(out, scale=MIDDLING, seed=3)


def test_both_directions_learn_what_an_untrained_network_does_not_know(demo):
    _, results = demo
    average = {name: 100 * evaluation.average_map for name, evaluation in results.evaluations.items()}
    assert average["F"] > 35
    assert average["B"] > 35
    assert average["untrained"] < 5


def test_without_motion_the_detector_is_lost(demo):
    _, results = demo
    assert results.evaluations["F on still windows"].average_map < results.evaluations["F"].average_map / 3


def counts(calls, label):
    """How often F calls the segments of a class by each name."""
    return calls.counts[CLASSES.index(label)]


def test_on_reversed_playback_swapping_classes_are_called_by_their_partner(demo):
    _, results = demo
    forward, backward = results.calls["F"], results.calls["F on reversed playback"]
    swapping = [label for label in CLASSES if kind_of(label) == "swapping" and counts(backward, label).any()]
    assert len(swapping) >= 4
    for label in swapping:
        own, other = CLASSES.index(label), CLASSES.index(REVERSED[label])
        assert counts(forward, label)[own] > counts(forward, label)[other]
        assert counts(backward, label)[other] > counts(backward, label)[own]


def test_the_page_shows_timelines_of_all_sources_and_says_nothing_on_the_console(demo):
    out, results = demo
    with chromium() as page:
        page.open(out / "index.html")
        assert page.evaluate("document.querySelectorAll('[data-track]').length") == 6
        assert page.evaluate("document.querySelectorAll('[data-segment]').length") > len(results.truth.classes)
        assert page.evaluate("document.querySelectorAll('table').length") == 3
        assert sorted(page.texts("#choice .name")) == sorted(results.truth.videos)
        assert page.texts("#media-note:not([hidden])") == []
        assert page.console == []


def test_pairs_that_learn_together_stand_on_what_their_networks_know(demo):
    _, results = demo
    average = {name: evaluation.average_map for name, evaluation in results.evaluations.items()}
    for experiment in ("3-1", "3-3"):
        for basis in ("forward basis", "reverse basis", "merged"):
            assert average[f"{experiment}, {basis}"] > max(average["F"], average["B"]) - 0.05


def test_the_full_demo_compares_every_run_and_keeps_what_is_done(tmp_path, capsys):
    trainings = Trainings(tmp_path, COMPLETE, 5)
    run_demo(tmp_path, scale=COMPLETE, seed=5, results_file=tmp_path / "docs" / "results.md")
    written = (tmp_path / "docs" / "results.md").read_text()
    for said in (
        "3-1, two forward networks",
        "3-1, naive, random",
        "late fusion F + B",
        "Direction sensitivity",
        "within spread",
    ):
        assert said in written
    made = {job.directory: (job.directory / "last.pt").stat().st_mtime_ns for job in trainings.jobs()}
    with chromium() as page:
        page.open(tmp_path / "comparison" / "index.html")
        assert page.texts("caption")[:3] == [
            "mAP (%)",
            "Average mAP (%): difference to the baselines",
            "Training losses of two networks",
        ]
        assert page.console == []
    capsys.readouterr()
    run_demo(tmp_path, scale=COMPLETE, seed=5, results_file=tmp_path / "docs" / "results.md")
    assert {job.directory: (job.directory / "last.pt").stat().st_mtime_ns for job in trainings.jobs()} == made
    assert (tmp_path / "docs" / "results.md").read_text() == written
    assert "About 0 minutes" in capsys.readouterr().err


def test_a_demo_of_another_kind_is_not_mixed_in(demo, capsys):
    out, _ = demo
    assert main(["demo", "--smoke", "--out", str(out)]) == 1
    assert "holds another demo" in capsys.readouterr().err


def test_detect_reads_a_camera_video_in_bounded_memory(demo, tmp_path):
    """Debian's opencv-doc carries a surveillance video, MPEG-4 in AVI: what browsers do not play."""
    video = Path("/usr/share/doc/opencv-doc/examples/data/vtest.avi")
    if not video.exists():
        pytest.skip("opencv-doc's vtest.avi is not installed")
    out, _ = demo
    found = tmp_path / "found"
    checkpoint = str(out / "runs" / "playroom-forward-seed3")
    assert (
        main(["detect", str(video), "--checkpoint", checkpoint, "--out", str(found), "--min-score", "0.05"]) == 0
    )
    assert (found / "detections.json").exists()
    assert (found / "vtest.srt").exists()
    with chromium() as page:
        page.open(found / "index.html")
        page.wait_for("document.querySelector('#player').readyState >= 1")
        assert page.evaluate("document.querySelectorAll('[data-track]').length") == 1
        assert page.evaluate("document.querySelector('#player').videoWidth") > 0
        assert page.console == []
