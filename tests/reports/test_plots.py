import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.image import imread

from bitad.data.annotations import AnnotatedVideo, Annotations
from bitad.data.detections import Detections
from bitad.evaluation.diagnosis import diagnose
from bitad.evaluation.direction_sensitivity import ClassSensitivity, Sensitivity
from bitad.evaluation.mean_average_precision import PrecisionRecall
from bitad.reports.plots import (
    plot_characteristics,
    plot_class_bars,
    plot_comparison,
    plot_confusion,
    plot_gains,
    plot_gaps_and_overlaps,
    plot_kinds,
    plot_lengths,
    plot_precision_recall,
    plot_sensitivity,
    plot_training_curves,
    smoothed,
)


def run(steps=30, epochs=3):
    records = [{"kind": "training", "step": i, "epoch": 1, "loss": 2.0 / (i + 1)} for i in range(steps)]
    return records + [{"kind": "evaluation", "epoch": i, "average_map": 0.1 * i} for i in range(epochs)]


def curve(n):
    hits = np.arange(n) % 3 < 2
    precision = np.cumsum(hits) / np.arange(1, n + 1)
    interpolated = np.maximum.accumulate(precision[::-1])[::-1]
    recall = np.cumsum(hits) / max(n, 1)
    return PrecisionRecall(
        np.linspace(1, 0, n), precision, recall, interpolated, float((interpolated * hits).sum())
    )


def training(path):
    plot_training_curves({"F": run(), "B": run(5, 1)}, path)


def precision_recall(path):
    results = {"F": {"open": curve(9), "close": curve(0)}, "B": {"open": curve(3)}}
    plot_precision_recall(results, path, tiou=0.5)


def bars(path):
    results = {"F": {"open": 50.0, "sway": 70.0, "close": 0.0}, "B": {"open": 20.0}}
    plot_class_bars(results, path, kinds={"open": "swapping", "close": "swapping", "sway": "symmetric"})


def confusion(path):
    plot_confusion(
        np.array([[90.0, 0.2, 9.8], [30, 0, 70]]),
        path,
        classes=("open", "sway"),
        called=("open", "close", "nothing"),
        expected={"open": "close", "sway": None},
        title="What F calls them",
    )


def comparison(path):
    groups = {"baselines": {"F": [80, 82.5, 81], "B": [83]}, "experiments": {"3-1, merged": [84.0, 85, 86]}}
    plot_comparison(groups, path, reference=("B", 83.0))


def sensitivity(path):
    classes = (
        ClassSensitivity("open", 14, 0.4, 0.6, 0.05, "close", 0.75, "swapping", None),
        ClassSensitivity("sway", 41, 1.0, 0.9, 0.95, "sway", 0.9, "symmetric", None),
    )
    plot_sensitivity(Sensitivity(classes, (0.5,), (1, 1)), path)


def lengths(path):
    plot_lengths({"open": np.geomspace(0.2, 90, 40), "close": np.array([2.5])}, path)


def gaps(path):
    overlaps = {"of one class": np.zeros(0), "of two classes": np.array([0.5, 0.7, 3])}
    plot_gaps_and_overlaps(np.geomspace(0.01, 60, 80), overlaps, path)


def diagnosis():
    """Four right detections, one of another class, one too short, and two of nothing; a class without detections."""
    rows = [(0, 5, "a"), (10, 14, "b"), (20, 28, "a"), (40, 43, "b"), (50, 55, "c")]
    segments, labels = np.array([row[:2] for row in rows], float), tuple(row[2] for row in rows)
    video = AnnotatedVideo("v", "test", 60.0, segments, labels)
    found = np.vstack([segments[:4], [[10, 14], [20, 25], [30, 32], [33, 35]]])
    numbers = np.array([0, 1, 0, 1, 0, 0, 0, 1])
    detections = Detections.from_videos({"v": (found, np.linspace(0.9, 0.2, 8), numbers)}, classes=("a", "b"))
    return diagnose(Annotations({"v": video}, ("a", "b", "c")), detections, tiou=[0.5, 0.7])


def kinds(path):
    plot_kinds({"F": diagnosis(), "B": diagnosis(), "3-1": diagnosis(), "3-3": diagnosis()}, path)


def gains(path):
    plot_gains({"F": diagnosis(), "B": diagnosis()}, path)


def characteristics(path):
    plot_characteristics({"F": diagnosis(), "B": diagnosis()}, path)


PLOTS = [
    training,
    precision_recall,
    bars,
    confusion,
    comparison,
    sensitivity,
    lengths,
    gaps,
    kinds,
    gains,
    characteristics,
]


@pytest.mark.parametrize("plot", PLOTS)
def test_a_plot_is_a_picture_with_more_than_one_colour(plot, tmp_path):
    plot(tmp_path / "plot.png")
    pixels = (255 * imread(tmp_path / "plot.png")).astype(np.uint8)  # [H, W, 4]
    assert min(pixels.shape[:2]) > 300
    assert len(np.unique(pixels.view(np.uint32))) > 20
    assert [path.name for path in tmp_path.iterdir()] == ["plot.png"]  # no temporary file stays


@pytest.mark.parametrize("plot", PLOTS)
def test_the_same_figures_give_the_same_svg(plot, tmp_path):
    plot(tmp_path / "a.svg")
    plot(tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "a.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_a_failed_plot_leaves_the_old_picture(tmp_path):
    picture = tmp_path / "plot.png"
    picture.write_bytes(b"old")
    with pytest.raises(KeyError):
        plot_training_curves({"F": [{"kind": "training", "loss": 1.0}]}, picture)
    assert picture.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_run_without_evaluation_is_drawn(tmp_path):
    plot_training_curves({"F": run(1, 0)}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").exists()


def test_curves_beyond_the_colours_are_told_apart_by_dashes(tmp_path):
    plot_training_curves({f"run {i}": run(4, 2) for i in range(9)}, tmp_path / "plot.svg")
    assert "stroke-dasharray" in (tmp_path / "plot.svg").read_text(encoding="utf-8").split("legend_1")[-1]
    plot_training_curves({f"run {i}": run(4, 2) for i in range(8)}, tmp_path / "few.svg")
    assert "stroke-dasharray" not in (tmp_path / "few.svg").read_text(encoding="utf-8").split("legend_1")[-1]


def test_segments_without_gaps_and_overlaps_are_said_to_have_none(tmp_path):
    none = np.zeros(0)
    with rc_context({"svg.fonttype": "none"}):
        plot_gaps_and_overlaps(none, {"of one class": none, "of two classes": none}, tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text(encoding="utf-8")
    assert "no gaps" in text
    assert "no segments overlap" in text


def test_a_plot_of_nothing_is_refused(tmp_path):
    for plot in (
        lambda path: plot_training_curves({}, path),
        lambda path: plot_precision_recall({"F": {}}, path, tiou=0.5),
        lambda path: plot_class_bars({}, path),
        lambda path: plot_comparison({"baselines": {}}, path),
        lambda path: plot_comparison({"baselines": {"F": []}}, path),
        lambda path: plot_kinds({}, path),
        lambda path: plot_gains({}, path),
        lambda path: plot_characteristics({}, path),
        lambda path: plot_lengths({}, path),
        lambda path: plot_lengths({"open": np.zeros(0)}, path),
    ):
        with pytest.raises(ValueError, match="needs at least one"):
            plot(tmp_path / "plot.png")


def test_an_unknown_form_of_picture_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"plot\.gif is neither \.png nor \.svg"):
        bars(tmp_path / "plot.gif")


def test_confusion_refuses_names_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match="does not match the number of labels"):
        plot_confusion(
            np.zeros((2, 2)), tmp_path / "p.png", classes=("a",), called=("a", "b"), expected={}, title="t"
        )
    with pytest.raises(ValueError, match="not in tuple"):
        plot_confusion(
            np.zeros((1, 1)), tmp_path / "p.png", classes=("a",), called=("a",), expected={"a": "z"}, title="t"
        )


@pytest.mark.parametrize("n", [0, 1, 59, 60, 301])
def test_smoothing_is_the_mean_of_the_neighbours(n):
    values = np.random.default_rng(n).normal(size=n)
    reach = n // 60
    expected = [values[max(0, i - reach) : i + reach + 1].mean() for i in range(n)]
    np.testing.assert_allclose(smoothed(values), expected)
