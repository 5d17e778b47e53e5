"""One network for both playing directions: experiment 1s, and ``direction=both``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import CHANNELS, CLASSES, config_of, feature_data, video_data
from runs import ALONE, assert_same_run, baseline, records, write_run

from bitad.cli import main
from bitad.config.schema import Config
from bitad.data.detections import Detections, read_detections
from bitad.data.samples import Batch, collate
from bitad.evaluation.direction_sensitivity import ClassSensitivity, Sensitivity
from bitad.inference.detect import detect
from bitad.library import load
from bitad.models.build import build_network
from bitad.models.heads import Prediction
from bitad.models.network import Detector, SharedDetector
from bitad.reports.comparison import Run, compare
from bitad.reports.comparison_page import write_comparison
from bitad.reports.plan import plan_training
from bitad.training.losses import DetectionLoss, Targets
from bitad.training.trainer import Trainer
from bitad.weights.checkpoint import load_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

MAP = "data.reversal={alpha: beta, gamma: unknown}"
EMBEDDED = "pair.direction_embedding=true"
QUICK = ("training.epochs=1", "test.candidates=40")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return feature_data(tmp_path_factory.mktemp("features") / "data")


def trainer_of(path: Path, tmp_path: Path, *overrides: str) -> Trainer:
    return Trainer(config_of(path, *overrides, f"output={tmp_path}"), ALONE)


def batch_of(trainer: Trainer, count: int = 3) -> Batch:
    return collate([trainer.windows[item] for item in range(count)], trainer.config.window.steps)


# The network.


def shared(path: Path, *overrides: str) -> SharedDetector:
    torch.manual_seed(1)
    network = build_network(config_of(path, "experiment=1s", *overrides), len(CLASSES)).eval()
    assert isinstance(network, SharedDetector)
    return network


@torch.inference_mode()
def test_each_view_is_seen_by_the_same_weights_and_begins_as_a_baseline(path: Path, tmp_path: Path) -> None:
    batch = batch_of(trainer_of(path, tmp_path, "experiment=1s"))
    torch.manual_seed(1)
    alone = build_network(config_of(path), len(CLASSES)).eval()
    assert isinstance(alone, Detector)
    for more in ((), (EMBEDDED,)):
        network = shared(path, *more)
        views = [view.inputs for view in batch.in_views(("forward", "reverse"))]
        predictions = network(views, batch.mask).predictions
        assert len(predictions) == 2
        for inputs, found in zip(views, predictions, strict=True):
            expected = alone.predict(inputs, batch.mask)
            torch.testing.assert_close(found.logits, expected.logits)
            torch.testing.assert_close(found.distances, expected.distances)
            assert torch.equal(found.mask, expected.mask)


@torch.inference_mode()
@pytest.mark.parametrize("padding", ["strict", "reference"])
def test_a_direction_embedding_tells_the_views_apart_and_leaves_the_padding_alone(
    path: Path, tmp_path: Path, padding: str
) -> None:
    batch = batch_of(trainer_of(path, tmp_path, "experiment=1s"))
    network = shared(path, EMBEDDED, f"model.padding={padding}")
    assert network.direction_embedding is not None
    assert network.direction_embedding.shape == (2, CHANNELS)
    network.direction_embedding[1] = torch.linspace(-1, 1, CHANNELS)
    mask = batch.mask.clone()
    mask[:, 20:] = False
    inputs = batch.inputs * mask[:, None]
    one, other = network([inputs, inputs], mask).predictions
    assert (one.logits - other.logits)[one.mask].abs().max() > 1e-3
    by_hand = inputs + network.direction_embedding[1][:, None] * mask[:, None]
    torch.testing.assert_close(other.logits, network.predict_features(by_hand, mask).logits)
    on_features = network.without_backbones()
    torch.testing.assert_close(on_features([inputs, inputs], mask).predictions[1].logits, other.logits)


# The loss.


def test_the_loss_is_that_of_one_batch_with_the_windows_of_both_views(path: Path, tmp_path: Path) -> None:
    trainer = trainer_of(path, tmp_path, "experiment=1s", "model.drop_path=0", MAP)
    step = trainer.train_step
    batch = batch_of(trainer)
    views = batch.in_views(("forward", "reverse"))
    normaliser = step.learners[0].loss.get_buffer("normaliser").clone()
    step.train()
    losses, agreement = step.losses(0, views)
    assert agreement is None
    assert list(losses) == ["forward", "reverse"]
    after = step.learners[0].loss.get_buffer("normaliser").clone()
    # By hand, in one batch.
    detector = trainer.network.detectors[0]
    prediction = detector.predict(torch.cat([view.inputs for view in views]), torch.cat([batch.mask] * 2))
    segments = [one for view in views for one in view.segments]
    labels = [one for view in views for one in view.labels]
    assert any((one < 0).any() for one in labels)
    loss = DetectionLoss(initial_normaliser=float(normaliser)).train()
    expected = loss(prediction, step.learners[0].targets(prediction.points, segments, labels))
    for name in ("classification", "regression", "total"):
        found = sum(getattr(one, name) for one in losses.values())
        torch.testing.assert_close(found, getattr(expected, name))
    assert torch.equal(after, loss.get_buffer("normaliser"))


def test_a_step_of_several_batches_is_that_of_one(path: Path, tmp_path: Path) -> None:
    steps, normalisers = [], []
    for name, sizes in (("one", (1, 4)), ("two", (2, 2))):
        accumulate, batch = sizes
        overrides = (f"training.accumulate={accumulate}", f"training.batch={batch}", "model.drop_path=0")
        trainer = trainer_of(path, tmp_path, "experiment=1s", MAP, EMBEDDED, f"name={name}", *overrides)
        trainer.train_step.train()
        items = np.arange(4).reshape(accumulate, batch).tolist()
        steps.append(trainer.train_step([collate([trainer.windows[i] for i in each], 32) for each in items]))
        normalisers.append(trainer.train_step.learners[0].loss.get_buffer("normaliser"))
    one, two = steps
    assert one.norms["shared"] == pytest.approx(two.norms["shared"], rel=1e-4)
    assert one.loss == pytest.approx(two.loss, rel=1e-5)
    assert normalisers[0] == normalisers[1]


def test_points_of_an_unknown_class_have_gradients_of_distances_alone(path: Path, tmp_path: Path) -> None:
    trainer = trainer_of(path, tmp_path, "experiment=1s", "data.reversal={alpha: unknown}")
    learner = trainer.train_step.learners[0]
    points = trainer.train_step.points
    generator = torch.Generator().manual_seed(0)

    def gradients(labels: list[int]) -> tuple[torch.Tensor, torch.Tensor, Targets]:
        logits = torch.randn(1, len(points), len(CLASSES), generator=generator.manual_seed(0), requires_grad=True)
        distances = torch.rand(1, len(points), 2, generator=generator, requires_grad=True)
        mask = torch.ones(1, len(points), dtype=torch.bool)
        targets = learner.targets(points, [torch.tensor([[2.0, 9.0], [12.0, 20.0]])], [torch.tensor(labels)])
        loss = learner.loss.eval()(Prediction(logits, distances, mask, points), targets)
        loss.total.backward()
        assert logits.grad is not None
        assert distances.grad is not None
        return logits.grad, distances.grad, targets

    (of_logits, of_distances, targets), as_ever = gradients([~0, 1]), gradients([0, 1])
    assert targets.taught is not None
    untaught = ~targets.taught.all(-1)
    assert untaught.sum() > 0
    assert (targets.positive & ~untaught).sum() > 0
    assert (of_logits[untaught] == 0).all()
    assert torch.equal(of_logits[~untaught], as_ever[0][~untaught])
    assert torch.equal(of_distances, as_ever[1])
    assert (of_distances[untaught] != 0).any()


# Testing.


def results_of(config: Config, trainer: Trainer) -> dict[str, Detections]:
    found = detect(trainer.network.eval(), trainer.evaluation_annotations, trainer.source, config, ALONE)
    return found.named()


def test_testing_maps_the_labels_of_the_reverse_view_back(path: Path, tmp_path: Path) -> None:
    trainer = trainer_of(path, tmp_path, "experiment=1s")
    kept = results_of(trainer.config, trainer)
    data = trainer.config.data.model_copy(
        update={"reversal": {"alpha": "beta", "beta": "alpha", "gamma": "unknown"}}
    )
    swapped = results_of(trainer.config.model_copy(update={"data": data}), trainer)
    assert list(kept) == list(swapped) == ["forward basis", "reverse basis", "merged"]

    def rows(found: Detections, labels: Any) -> list[tuple[Any, ...]]:
        return sorted(zip(found.video, labels[found.labels], *found.segments.T, found.scores, strict=True))

    same, partner = np.arange(3), np.array([1, 0, 2])
    assert set(kept["reverse basis"].labels) >= {0, 1}
    assert rows(kept["forward basis"], same) == rows(swapped["forward basis"], same)
    assert rows(kept["reverse basis"], partner) == rows(swapped["reverse basis"], same)
    assert kept["reverse basis"].basis == swapped["reverse basis"].basis == "forward"


def test_a_swapping_class_is_learned_under_its_partners_label(tmp_path: Path) -> None:
    """Reversed windows show the labels swapped: a network that keeps them must contradict itself."""
    path = feature_data(tmp_path / "data", training=6)
    # In forward time alpha and beta differ in what rises: reversed, each looks as the other.
    for file in (path.parent / "features").glob("*.npy"):
        features = np.load(file)
        ramp, action = features[:, 3].copy(), features[:, :3].max(1) > 0.5
        alpha, beta = features[:, 0] > 0.5, features[:, 1] > 0.5
        features[:, :2] = 0
        features[alpha, 0], features[beta, 0] = ramp[alpha], 1 - ramp[beta]
        features[alpha | beta, 1] = 1
        features[:, 3] = action
        np.save(file, features)
    found = {}
    for name, more in {"swapped": ("data.reversal={alpha: beta}",), "kept": ()}.items():
        how = ("experiment=1s", f"name={name}", "training.epochs=10", "training.evaluate_from=9", *more)
        how = (*how, "training.batch=4", "training.windows_per_video=4", "training.lr=1e-2", "test.candidates=100")
        trainer = trainer_of(path, tmp_path, *how)
        trainer.run()
        (last,) = records(trainer.directory, kind="evaluation")
        found[name] = last["average_map_per_basis"] | {"merged": last["average_map"]}
    for basis in ("forward basis", "reverse basis", "merged"):
        assert found["swapped"][basis] > found["kept"][basis] + 0.1, found


# Runs: on the command line.


def test_both_directions_train_resume_to_the_bit_are_tested_forward_and_move(path: Path, tmp_path: Path) -> None:
    how = ("direction=both", MAP, "training.epochs=3", "training.evaluate_every=3", "test.candidates=40")
    whole, parts = (config_of(path, *how, f"output={tmp_path / name}") for name in ("whole", "parts"))
    assert whole.run_directory.name == "tiny-both-seed0"
    Trainer(whole, ALONE).run()
    for stop in (1, None):
        torch.manual_seed(99)
        Trainer(parts, ALONE, resume=stop is None).run(until=stop)
    assert_same_run(whole.run_directory, parts.run_directory)
    moved = tmp_path / "elsewhere" / "run"
    moved.parent.mkdir()
    shutil.move(whole.run_directory, moved)
    assert main(["test", str(moved), "--device", "cpu"]) == 0
    assert list(json.loads((moved / "test" / "metrics.json").read_text())) == ["forward"]
    trained, tested = (read_detections(folder / "detections.json") for folder in (moved, moved / "test"))
    assert trained.scores.tolist() == tested.scores.tolist()


def test_a_shared_network_is_trained_moved_tested_and_loaded_by_its_commands(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how = ["experiment=1s", EMBEDDED, MAP, *QUICK, f"output={tmp_path}"]
    assert main(["train", str(path), *how, "--device", "cpu"]) == 0
    said = capsys.readouterr().err
    assert "in reversed windows, alpha is beta, beta is alpha; no class is learned of gamma" in said
    run = tmp_path / "tiny-1s-direction-embedding-seed0"
    moved = tmp_path / "moved"
    run.rename(moved)
    assert main(["test", str(moved), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("forward basis", "reverse basis", "merged"))
    saved = load_checkpoint(moved)
    assert saved.config.data.reversal == {"alpha": "beta", "beta": "alpha", "gamma": "unknown"}
    assert saved.model["direction_embedding"].abs().max() > 0
    features = np.load(path.parent / "features" / "test_0.npy")
    loaded = load(moved, device="cpu").predict(features, 16.0, name="test_0")
    tested = read_detections(moved / "test" / "detections.json").of_video("test_0")
    assert loaded.scores[:20].tolist() == pytest.approx(tested.scores[:20].tolist(), abs=1e-4)
    assert loaded.labels[:5].tolist() == tested.labels[:5].tolist()
    assert main(["test", str(moved), "data.reversal={alpha: unknown}", "--out", str(tmp_path / "no")]) == 1
    said = capsys.readouterr().err
    assert (
        "was trained otherwise: data.reversal was {'alpha': 'beta', 'gamma': 'unknown', 'beta': 'alpha'}, is"
        in said
    )


def test_a_shared_network_detects_in_video_files(tmp_path: Path) -> None:
    path = video_data(tmp_path / "data")
    trainer = trainer_of(path, tmp_path, "experiment=1s", EMBEDDED, MAP, *QUICK)
    trainer.run()
    out, video = tmp_path / "found", str(path.parent / "videos" / "test_0.mp4")
    assert (
        main(["detect", video, "--checkpoint", str(trainer.directory), "--out", str(out), "--device", "cpu"]) == 0
    )
    found, tested = (
        read_detections(out / "detections.json"),
        read_detections(trainer.directory / "detections.json"),
    )
    assert found.scores[:20].tolist() == pytest.approx(tested.scores[:20].tolist(), abs=2e-4)


@pytest.mark.parametrize("how", [("experiment=1s",), ("experiment=1s", EMBEDDED), ("direction=both",)])
def test_labels_that_are_kept_by_default_are_logged(
    path: Path, tmp_path: Path, how: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(path), *how, *QUICK, f"output={tmp_path}", "--device", "cpu"]) == 0
    said = capsys.readouterr().err
    assert f"in reversed windows, all classes keep their labels: {', '.join(CLASSES)}" in said
    assert "data.reversal can name the classes that look like others, or like none" in said


def test_without_effect_a_map_changes_nothing_to_the_bit_and_may_change_on_resuming(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, mapped = (
        config_of(path, *QUICK, "direction=reverse", f"output={tmp_path / name}", *more)
        for name, more in (("plain", ()), ("mapped", (MAP,)))
    )
    Trainer(plain, ALONE).run()
    command = ["train", str(path), *QUICK, "direction=reverse", f"output={tmp_path / 'mapped'}", "--device", "cpu"]
    assert main([*command, MAP]) == 0
    assert "data.reversal does not change this training" in capsys.readouterr().err
    assert_same_run(plain.run_directory, mapped.run_directory)
    assert main([*command, "--resume"]) == 0


def test_a_plan_counts_both_views_and_one_network(
    path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    how = {"F": (), "both": ("direction=both",), "1s": ("experiment=1s",)}
    plans = {
        name: plan_training(config_of(path, *more), as_configured=True).to_json() for name, more in how.items()
    }
    assert main(["plan", str(path), "experiment=1s", EMBEDDED, "--json", str(tmp_path / "plan.json")]) == 0
    assert "Experiment 1s: one network sees windows in both directions." in capsys.readouterr().out
    plans["embedded"] = json.loads((tmp_path / "plan.json").read_text())
    costs = {name: plan["steps"][0] for name, plan in plans.items()}
    assert costs["both"] == costs["F"]
    assert costs["1s"]["flops"] == 2 * costs["F"]["flops"]
    assert costs["1s"]["forward_flops"] == costs["embedded"]["forward_flops"]
    parameters = {}
    for name, plan in plans.items():
        (parts,) = plan["parameters"].values()
        parameters[name] = sum(part["all"] for part in parts.values())
    assert parameters["1s"] == parameters["F"] == parameters["both"]
    assert parameters["embedded"] == parameters["F"] + 2 * CHANNELS


# What is refused.


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ("experiment=1s", "direction=reverse"),
            "direction=reverse has no effect in experiment 1s, which has one",
        ),
        (
            ("experiment=1s", "direction=both"),
            "direction=both has no effect in experiment 1s, which has one network",
        ),
        (("experiment=1s", "pair.second=forward"), "pair.second=forward has no effect in experiment 1s"),
        (("experiment=1s", "pair.align=naive"), "pair.align=naive has no effect in experiment 1s"),
        (("experiment=1s", "init.forward=f"), "experiment 1s starts from the pre-trained backbone"),
        (("experiment=1s", "test.nms.method=none"), "experiment 1s merges two sets of detections"),
        (
            ("experiment=1", "direction=both"),
            "direction=both has no effect in experiment 1, which",
        ),
        (
            (EMBEDDED,),
            "pair.direction_embedding=true has no effect in experiment baseline",
        ),
        ((MAP, "data.class_agnostic=true"), "has no effect with data.class_agnostic=true"),
        (("direction=sideways",), "direction: "),
        (("data.reversal={alpha: beta, beta: beta}",), "data.reversal: alpha becomes beta, but beta becomes beta"),
        (("data.reversal=alpha",), "data.reversal: "),
        (
            ("data.reversal={alfa: beta}",),
            "data.reversal: unknown class 'alfa'; one of alpha, beta, gamma; did",
        ),
        (("experiment=1s", "data.reversal={alpha: betta}"), "data.reversal: unknown class 'betta'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_before_the_training(
    path: Path, tmp_path: Path, overrides: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(path), *overrides, f"output={tmp_path / 'runs'}"]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err
    assert not list((tmp_path / "runs").glob("*"))


def test_a_network_of_both_directions_is_no_baseline(path: Path, tmp_path: Path) -> None:
    forward = baseline(path, f"output={tmp_path}")
    both = baseline(path, "direction=both", f"output={tmp_path}")
    one = baseline(path, "experiment=1s", f"output={tmp_path}")
    for other, said in (
        (both, "it was trained with direction=both, this network needs reverse"),
        (one, "it is a run of experiment 1s, give one of the baseline"),
    ):
        with pytest.raises(ValueError, match=said) as refused:
            trainer_of(path, tmp_path, "experiment=3-3", f"init.forward={forward}", f"init.reverse={other}")
        assert f"init.reverse={other} does not fit this run" in str(refused.value)


def test_a_resumed_run_keeps_its_map(path: Path, tmp_path: Path) -> None:
    run = baseline(path, "experiment=1s", MAP, f"output={tmp_path}")
    saved = load_checkpoint(run)
    for reversal, now in (
        (None, "None"),
        ({"alpha": "beta", "beta": "alpha"}, "{'alpha': 'beta', 'beta': 'alpha'}"),
    ):
        data = saved.config.data.model_copy(update={"reversal": reversal})
        (change,) = saved.changes(saved.config.model_copy(update={"data": data}))
        assert change.endswith(f", is {now}")


# Reports.


def test_runs_are_reported_beside_f_and_b(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = []
    for how in (("direction=forward",), ("direction=reverse",), ("direction=both",), ("experiment=1s", MAP)):
        config = config_of(path, *how, f"output={tmp_path / 'runs'}")
        write_run(config)
        runs.append(config.run_directory)
    comparison = compare(runs)
    groups = {result.label: result.group for result in comparison.results if "fusion" not in result.label}
    assert groups == {
        "F": "baselines",
        "B": "baselines",
        "1s, forward basis": "experiments",
        "1s, reverse basis": "experiments",
        "1s, merged": "experiments",
        "both directions": "ablations and controls",
    }
    assert comparison.reversals == [{"alpha": "beta", "beta": "alpha", "gamma": "unknown"}, {}]
    assert [row[0] for row in comparison.loss_table().rows] == ["1s"]
    assert any("divided by the positive points of both views" in note for note in comparison.loss_table().notes)
    assert main(["report", *map(str, runs), "--out", str(tmp_path / "report")]) == 0
    assert "1s, merged" in capsys.readouterr().out
    judged = ClassSensitivity("gamma", 9, 0.9, 0.9, 0.9, "gamma", 1.0, "symmetric", None)
    write_comparison(tmp_path / "judged", comparison, Sensitivity((judged,), (0.5,), (1, 1)))
    written = (tmp_path / "judged" / "results.md").read_text()
    assert "(data.reversal) contradicts the verdict on gamma (stated: unknown, judged: symmetric)." in written
    assert written.count("contradicts") == 1  # the network of both directions keeps its labels
    embedded = Run(tmp_path, config_of(path, "experiment=1s", EMBEDDED))
    assert (embedded.label, embedded.group) == ("1s, direction embedding", "ablations and controls")


def test_a_configuration_is_shown_and_read_again_with_its_map(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "--show", str(path), MAP]) == 0
    shown = capsys.readouterr().out
    assert "  reversal: {alpha: beta, beta: alpha, gamma: unknown}  # command line\n" in shown
    (tmp_path / "again.yaml").write_text(shown, encoding="utf-8")
    again = config_of(tmp_path / "again.yaml")
    assert again.data.reversal == config_of(path, MAP).data.reversal
    assert again == config_of(path, MAP)
