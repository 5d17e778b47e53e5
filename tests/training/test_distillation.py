"""One network learns from a finished teacher: runs of one or two networks, or detections."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import CLASSES, config_of, feature_data, video_data
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import ALONE, assert_same_run, baseline, both_baselines, records
from torch import Tensor

from bitad.cli import main
from bitad.config.schema import Config
from bitad.data.detections import Detections, read_detections, write_detections
from bitad.data.samples import Batch
from bitad.models.alignment import aligned
from bitad.models.heads import Points, Prediction
from bitad.models.network import Detector
from bitad.training.distillation import SoftTargets, distillation_loss, soft_assign
from bitad.training.trainer import Trainer
from bitad.weights.checkpoint import load_checkpoint, save_checkpoint

POINTS = Points.of_levels((8, 4), (1, 2), [(0.0, 4.0), (4.0, 10000.0)])
N, K = len(POINTS), 3
NOTHING_DROPPED = "model.drop_path=0"
# An epoch is a step; only the last one is tested.
THREE_STEPS = ("training.epochs=3", "training.evaluate_every=3", "training.batch=4", "test.candidates=40")

pytestmark = pytest.mark.usefixtures("one_thread")


# The loss.


def prediction_of(seed: int, *, per_class: bool = False) -> Prediction:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, N, K, 2) if per_class else (2, N, 2)
    return Prediction(
        logits=3 * torch.randn(2, N, K, generator=generator, dtype=torch.float64) - 2,
        distances=5 * torch.rand(shape, generator=generator, dtype=torch.float64) + 0.01,
        mask=torch.arange(N) < torch.tensor([[N], [N - 3]]),
        points=POINTS,
    )


def soft_of(prediction: Prediction) -> SoftTargets:
    return SoftTargets(prediction.logits, prediction.distances)


def with_gradient(prediction: Prediction) -> Prediction:
    logits, distances = (one.clone().requires_grad_() for one in (prediction.logits, prediction.distances))
    return prediction._replace(logits=logits, distances=distances)


@given(seed=st.integers(0, 2**31), per_class=st.booleans(), temperature=st.sampled_from([0.5, 1.0, 3.0]))
@settings(deadline=None, max_examples=40)
def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient(
    seed: int, per_class: bool, temperature: float
) -> None:
    teacher = prediction_of(seed, per_class=per_class)
    student = with_gradient(teacher)
    loss = distillation_loss(student, soft_of(teacher), temperature=temperature)
    assert loss.item() == pytest.approx(0, abs=1e-12)
    loss.backward()
    for one in (student.logits, student.distances):
        assert one.grad is not None
        torch.testing.assert_close(one.grad, torch.zeros_like(one), atol=1e-12, rtol=0)


@given(
    seed=st.integers(0, 2**31),
    student_per_class=st.booleans(),
    teacher_per_class=st.booleans(),
    temperature=st.sampled_from([1.0, 3.0]),
)
@settings(deadline=None, max_examples=40)
def test_any_other_student_has_a_loss_that_a_step_along_its_gradient_lowers_and_that_padding_does_not_change(
    seed: int, student_per_class: bool, teacher_per_class: bool, temperature: float
) -> None:
    teacher = soft_of(prediction_of(seed, per_class=teacher_per_class))
    student = with_gradient(prediction_of(seed + 1, per_class=student_per_class))
    loss = distillation_loss(student, teacher, temperature=temperature)
    assert loss.item() > 0
    loss.backward()
    assert student.logits.grad is not None
    assert student.distances.grad is not None
    with torch.no_grad():
        nearer = student._replace(
            logits=student.logits - 1e-4 * student.logits.grad,
            distances=student.distances - 1e-6 * student.distances.grad,
        )
    assert distillation_loss(nearer, teacher, temperature=temperature) < loss
    padding = ~student.mask
    elsewhere = SoftTargets(
        teacher.logits + 7.0 * padding[..., None],
        teacher.distances + 7.0 * padding.reshape(2, N, *(1,) * (teacher.distances.ndim - 2)),
    )
    torch.testing.assert_close(distillation_loss(student, elsewhere, temperature=temperature), loss)


def test_segments_are_learnt_where_the_teacher_is_sure_of_an_action() -> None:
    teacher = prediction_of(0)
    logits = torch.full_like(teacher.logits, -30.0)
    logits[0, 2, 1] = 30.0
    student = with_gradient(prediction_of(1)._replace(logits=logits))
    distillation_loss(student, SoftTargets(logits, teacher.distances)).backward()
    assert student.distances.grad is not None
    assert torch.nonzero(student.distances.grad.abs().sum(-1) > 1e-9).tolist() == [[0, 2]]


# Detections as targets.

# Sixteenths, which single precision adds and halves exactly.
one_detection = st.tuples(
    st.integers(-16, 144).map(lambda number: number / 16),
    st.integers(0, 192).map(lambda number: number / 16),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    st.integers(0, K - 1),
)


@given(found=st.lists(one_detection, max_size=6), radius=st.sampled_from([0.5, 1.5, 4.0]))
@settings(deadline=None, max_examples=60)
def test_a_point_takes_the_scores_of_the_detections_that_it_could_learn(
    found: list[tuple[float, float, float, int]], radius: float
) -> None:
    columns = [*found, (0.0, 0.0, 0.0, 0)]
    segments = torch.tensor([[[start, start + length] for start, length, _, _ in columns]])
    scores = torch.tensor([[score for *_, score, _ in columns]])
    labels = torch.tensor([[label for *_, label in columns]])
    soft = soft_assign(POINTS, segments, scores, labels, K, radius=radius)
    probability = soft.logits.sigmoid()
    points = zip(
        *(column.tolist() for column in (POINTS.position, POINTS.stride, POINTS.low, POINTS.high)), strict=True
    )
    for number, (position, stride, low, high) in enumerate(points):
        expected, best, distances = [0.0] * K, 0.0, [0.0, 0.0]
        for (start, end), score, label in zip(
            segments[0].tolist(), scores[0].tolist(), labels[0].tolist(), strict=True
        ):
            inside = start < position < end and abs(position - (start + end) / 2) < radius * stride
            if inside and low <= max(position - start, end - position) <= high:
                expected[label] = max(expected[label], score)
                if score > best:
                    best, distances = score, [(position - start) / stride, (end - position) / stride]
        assert probability[0, number].tolist() == pytest.approx(expected, abs=2e-4)
        assert soft.distances[0, number].tolist() == pytest.approx(distances, abs=1e-4)


# Runs.


@dataclass(frozen=True)
class Data:
    """A data set, and runs of F, of B and of 3-3 on it."""

    path: Path
    f: Path
    b: Path
    pair: Path

    def config(self, teacher: object, *overrides: str) -> Config:
        return config_of(self.path, "experiment=distil", f"init.teacher={teacher}", *overrides)


def with_teachers(path: Path) -> Data:
    init = both_baselines(path)
    forward, reverse = (Path(one.partition("=")[2]) for one in init)
    return Data(path, forward, reverse, baseline(path, "experiment=3-3", *init))


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return with_teachers(feature_data(tmp_path_factory.mktemp("features") / "data"))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return with_teachers(video_data(tmp_path_factory.mktemp("videos") / "data"))


def teacher_of(trainer: Trainer, batch: Batch) -> SoftTargets:
    step = trainer.train_step
    assert step.teacher is not None
    return step.teacher(batch, step.network_input)


def predict(run: Path, batch: Batch) -> Prediction:
    network = load_checkpoint(run).network()
    assert isinstance(network, Detector)
    with torch.no_grad():
        return network.predict(batch.inputs, batch.mask)


def assert_equal_at_points(soft: SoftTargets, logits: Tensor, distances: Tensor, mask: Tensor) -> None:
    torch.testing.assert_close(soft.logits[mask], logits[mask])
    torch.testing.assert_close(soft.distances[mask], distances[mask])


@pytest.mark.parametrize("kind", ["features", "videos"])
def test_a_pair_teaches_by_its_forward_basis_and_single_networks_by_the_mean_on_the_forward_clock(
    kind: str, request: pytest.FixtureRequest
) -> None:
    data: Data = request.getfixturevalue(kind)
    trainer = Trainer(data.config(data.pair), ALONE)
    batch = next(iter(trainer.loader))
    batch = replace(batch, colour=None)  # the changed picture is compared below
    network = load_checkpoint(data.pair).network()
    with torch.no_grad():
        fused = network([view.inputs for view in batch.in_views(("forward", "reverse"))], batch.mask).predictions[
            0
        ]
    assert_equal_at_points(teacher_of(trainer, batch), fused.logits, fused.distances, fused.mask)
    soft = teacher_of(Trainer(data.config(f"[{data.f}, {data.b}]"), ALONE), batch)
    forward, reverse = predict(data.f, batch), aligned(predict(data.b, batch.reversed()))
    assert_equal_at_points(
        soft,
        (forward.logits + reverse.logits) / 2,
        (forward.distances + reverse.distances) / 2,
        forward.mask,
    )


@pytest.mark.parametrize("experiment", ["experiment=1s", "direction=both"])
def test_a_network_of_both_directions_teaches_by_all_its_views(
    features: Data, tmp_path: Path, experiment: str
) -> None:
    run = baseline(features.path, experiment, f"output={tmp_path}")
    trainer = Trainer(features.config(run), ALONE)
    batch = next(iter(trainer.loader))
    views = [batch, batch.reversed()] if experiment == "experiment=1s" else [batch]
    with torch.no_grad():
        own = load_checkpoint(run).network()([view.inputs for view in views], batch.mask).own
    every = [own[0], *map(aligned, own[1:])]
    logits, distances = (
        torch.stack([getattr(one, name) for one in every]).mean(0) for name in ("logits", "distances")
    )
    assert_equal_at_points(teacher_of(trainer, batch), logits, distances, own[0].mask)


def test_a_teacher_on_reversed_features_is_aligned_to_the_forward_clock(features: Data, tmp_path: Path) -> None:
    run = baseline(features.path, "direction=reversed-features", f"output={tmp_path}")
    trainer = Trainer(features.config(run), ALONE)
    batch = next(iter(trainer.loader))
    taught = aligned(predict(run, batch))
    assert_equal_at_points(teacher_of(trainer, batch), taught.logits, taught.distances, taught.mask)


def test_a_teacher_whose_reverse_view_has_other_labels_is_refused(features: Data, tmp_path: Path) -> None:
    run = baseline(features.path, "experiment=1s", "data.reversal={alpha: beta}", f"output={tmp_path}")
    assert "data.reversal gives its reverse view other labels; give a run without it" in refusal(features, run)


def test_a_pair_without_a_fusion_teaches_by_the_mean_of_both(features: Data, tmp_path: Path) -> None:
    pair = baseline(features.path, "experiment=1", f"output={tmp_path}")
    trainer = Trainer(features.config(pair), ALONE)
    batch = next(iter(trainer.loader))
    with torch.no_grad():
        own = load_checkpoint(pair).network()([batch.inputs, batch.reversed().inputs], batch.mask).own
    forward, reverse = own[0], aligned(own[1])
    logits, distances = (forward.logits + reverse.logits) / 2, (forward.distances + reverse.distances) / 2
    assert_equal_at_points(teacher_of(trainer, batch), logits, distances, forward.mask)


@pytest.mark.parametrize("kind", ["features", "videos"])
def test_a_student_that_starts_as_its_teacher_sees_the_same_window_and_has_no_distillation_loss(
    kind: str, request: pytest.FixtureRequest
) -> None:
    data: Data = request.getfixturevalue(kind)
    more = ("model.dropout=0", NOTHING_DROPPED, "training.augmentation.colour=1")
    trainer = Trainer(data.config(data.f, f"init.forward={data.f}", *more), ALONE)
    trainer.train_step.train()
    _, loss = trainer.train_step.losses(0, [next(iter(trainer.loader))])
    assert loss is not None
    assert loss.item() == pytest.approx(0, abs=1e-6)
    other = Trainer(data.config(data.pair, f"init.forward={data.f}", "distil.weight=2", *more), ALONE)
    other.train_step.train()
    _, loss = other.train_step.losses(0, [next(iter(other.loader))])
    assert loss is not None
    assert loss.item() > 1e-3


def test_the_detection_loss_stays_and_the_weight_scales_the_other(features: Data) -> None:
    plain = Trainer(config_of(features.path, NOTHING_DROPPED, "name=plain"), ALONE)
    found = []
    for weight in (1, 3):
        trainer = Trainer(features.config(features.pair, f"distil.weight={weight}", NOTHING_DROPPED), ALONE)
        trainer.train_step.train()
        losses, loss = trainer.train_step.losses(0, [next(iter(trainer.loader))])
        assert loss is not None
        found.append(loss.item())
    plain.train_step.train()
    expected, _ = plain.train_step.losses(0, [next(iter(plain.loader))])
    # The student is the network that it would be without a teacher.
    torch.testing.assert_close(losses["forward"], expected["forward"], rtol=0, atol=0)
    assert found[1] == pytest.approx(3 * found[0])


def test_a_step_of_several_batches_is_that_of_all_their_windows(features: Data) -> None:
    found = []
    for batch, accumulate in ((4, 1), (2, 2)):
        more = (f"training.batch={batch}", f"training.accumulate={accumulate}", NOTHING_DROPPED)
        trainer = Trainer(features.config(features.pair, *more), ALONE)
        trainer.train_step.train()
        step = trainer.train_step(list(trainer.loader))
        assert step.extra is not None
        found.append((step.extra[0], step.extra[1].item(), step.norms["forward"]))
    assert found[0] == ("distillation", pytest.approx(found[1][1], rel=1e-4), pytest.approx(found[1][2], rel=1e-3))


# Training, keeping, resuming, testing.


def train(config: Config, *more: str) -> int:
    path = config.run_directory.parent / f"{config.name}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(config.to_yaml(), encoding="utf-8")
    return main(["train", str(path), "--device", "cpu", *more])


@pytest.mark.parametrize(
    ("kind", "teacher", "more"),
    [
        ("features", "pair", ("model.dropout=0.1",)),
        ("features", "singles", ("distil.temperature=2",)),
        ("features", "detections", ("model.dropout=0.1",)),
        ("features", "pair", ("model.head.type=trident", "model.pyramid.type=sgp")),
        ("videos", "pair", ("init",)),
    ],
)
def test_a_run_resumes_to_the_bit_and_is_tested_without_its_teacher(
    kind: str,
    teacher: str,
    more: tuple[str, ...],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data: Data = request.getfixturevalue(kind)
    place = shutil.copytree(data.path.parent / "runs", tmp_path / "teachers")
    f, b, pair = (place / run.name for run in (data.f, data.b, data.pair))
    named: object = {"pair": pair, "singles": f"[{f}, {b}]", "detections": place / "detections.json"}[teacher]
    if teacher == "detections":
        command = [
            "test",
            str(pair),
            "data.test_subset=training",
            "--device",
            "cpu",
            "--out",
            str(tmp_path / "found"),
        ]
        assert main(command) == 0
        shutil.copy(tmp_path / "found" / "detections.json", place)
    overrides = [f"init.forward={f}" if one == "init" else one for one in more]
    whole, parts = (
        data.config(named, *THREE_STEPS, *overrides, f"output={tmp_path / name}") for name in ("whole", "parts")
    )
    if kind == "videos":
        whole, parts = (
            one.model_copy(update={"training": one.training.model_copy(update={"batch": 2})})
            for one in (whole, parts)
        )
    assert train(whole) == 0
    assert train(parts, "--until", "1") == 0
    torch.manual_seed(99)
    assert train(parts, "--resume") == 0
    assert_same_run(whole.run_directory, parts.run_directory)
    assert whole.run_directory.name == "tiny-distil-seed0"
    (first,) = records(whole.run_directory, kind="training")
    assert first["distillation"] > 0
    assert first["loss"] == pytest.approx(
        first["classification"] + first["regression"] + first["distillation"], rel=1e-4
    )
    shutil.rmtree(place)
    # The checkpoint has the parameters of one network.
    saved = load_checkpoint(whole.run_directory)
    network = saved.network()
    assert isinstance(network, Detector)
    assert saved.model.keys() == network.state_dict().keys()
    capsys.readouterr()
    assert main(["test", str(whole.run_directory), "--device", "cpu"]) == 0
    assert "average" in capsys.readouterr().out
    found = read_detections(whole.run_directory / "test" / "detections.json")
    assert found.basis == "forward"
    assert len(found) > 0
    assert main(["report", str(whole.run_directory), "--out", str(tmp_path / "report")]) == 0
    assert "distil" in capsys.readouterr().out


def test_a_teacher_may_move_but_not_change(
    features: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, moved = tmp_path / "first", tmp_path / "moved"
    shutil.copytree(features.f, first)
    config = features.config(first, *THREE_STEPS, f"output={tmp_path / 'runs'}")
    assert train(config, "--until", "1") == 0
    first.rename(moved)
    command = ["train", str(config.run_directory / "config.yaml"), "--resume", "--device", "cpu"]
    capsys.readouterr()
    assert main(command) == 1
    assert f"init.teacher: no weights at {first}" in capsys.readouterr().err
    other = load_checkpoint(features.f)
    changed = replace(
        other, model={name: one + 0.01 if "head" in name else one for name, one in other.model.items()}
    )
    save_checkpoint(changed, tmp_path / "other.pt")
    assert main([*command, f"init.teacher={tmp_path / 'other.pt'}"]) == 1
    assert "the data have changed" in (said := capsys.readouterr().err)
    assert "teacher" in said
    assert main([*command, f"init.teacher={moved}"]) == 0


def test_reversed_copies_are_read_for_a_teacher_that_watches_them_and_not_in_testing(
    features: Data, tmp_path: Path
) -> None:
    folder = features.path.parent / "features"
    reverse = shutil.copytree(folder, tmp_path / "reversed")
    copies = (f"data.reversed_features={reverse}", f"output={tmp_path}")
    reverse_network = baseline(features.path, "direction=reverse", *copies)
    counts = {}
    for name, teacher in (("with B", reverse_network), ("F alone", features.f)):
        trainer = Trainer(features.config(teacher, *THREE_STEPS, *copies), ALONE)
        batch = next(iter(trainer.loader))
        counts[name] = batch.reversed_copy is not None
        assert ("reversed features" in trainer.fingerprints) == counts[name]
    assert counts == {"with B": True, "F alone": False}
    config = features.config(reverse_network, *THREE_STEPS, *copies)
    assert train(config) == 0
    shutil.rmtree(reverse)
    assert main(["test", str(config.run_directory), "--device", "cpu"]) == 0


# What cannot teach.


def refusal(data: Data, teacher: object, *overrides: str, kind: type[Exception] = ValueError) -> str:
    """The line with which a run is refused before it begins."""
    config = data.config(teacher, "name=refused", *overrides)
    with pytest.raises(kind) as refused:
        Trainer(config, ALONE)
    assert not config.run_directory.exists()
    message = str(refused.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("window.steps=64", "window.steps is 32 there and 64 here"),
        ("data.feature_stride_frames=8", "data.feature_stride_frames is 4.0 there and 8.0 here"),
        ("model.levels=2", "model.levels is 3 there and 2 here"),
        ("window.layout=resized", "window.layout is sliding there and resized here"),
    ],
)
def test_a_teacher_of_other_windows_is_refused_with_both_values(features: Data, override: str, said: str) -> None:
    message = refusal(features, features.pair, override, "data.allow_clock_mismatch=true")
    assert message.startswith(f"init.teacher={features.pair} does not fit this run: ")
    assert said in message


def test_a_teacher_of_other_classes_or_on_other_data_or_that_is_not_there_is_refused(
    features: Data, videos: Data, tmp_path: Path
) -> None:
    save_checkpoint(
        replace(load_checkpoint(features.f), classes=("alpha", "gamma", "beta")), tmp_path / "other.pt"
    )
    message = refusal(features, tmp_path / "other.pt")
    assert f"its classes are alpha, gamma, beta, here {', '.join(CLASSES)}" in message
    assert "it watches videos, this network features" in refusal(features, videos.f)
    assert "it watches features, this network videos" in refusal(videos, features.f)
    message = refusal(features, tmp_path / "nowhere", kind=FileNotFoundError)
    assert message.startswith(f"init.teacher: no weights at {tmp_path / 'nowhere'}")


def test_detections_that_cannot_teach_are_refused(features: Data, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    assert "found.json: no such file" in refusal(features, path, kind=FileNotFoundError)
    names = [f"train_{number}" for number in range(4)]

    def write(videos: list[str], classes: tuple[str, ...] = CLASSES, score: float = 0.5) -> None:
        none = (np.zeros((0, 2)), np.zeros(0), np.zeros(0, np.int64))
        one = (np.array([[1.0, 2.0]]), np.array([score]), np.array([0]))
        found = dict.fromkeys(videos, none) | {videos[0]: one}
        write_detections(Detections.from_videos(found, classes=classes), path)

    write(names[:2])
    assert "has no detections of 2 training videos (train_2, train_3)" in refusal(features, path)
    write(names, ("alpha", "other"))
    assert "it has the classes other, which are not here" in refusal(features, path)
    write(names, score=7.0)
    assert "has scores from 7 to 7; give probabilities from 0 to 1" in refusal(features, path)
    write(names)
    Trainer(features.config(path), ALONE)


def test_the_command_refuses_in_one_line_what_cannot_start(
    features: Data, capsys: pytest.CaptureFixture[str]
) -> None:
    run = f"init.teacher={features.pair}"
    distil = "experiment=distil"
    cases = {
        "experiment distil needs a teacher": (distil,),
        "init.teacher: a file of detections teaches alone": (distil, f"init.teacher=[a.json, {features.f}]"),
        "experiment distil trains a forward network": (distil, run, "direction=reverse"),
        "leave out init.forward and init.reverse": (distil, run, f"init.reverse={features.b}"),
        "it may start from init.forward alone": (
            *(distil, run, f"init.forward={features.f}", f"init.reverse={features.b}"),
        ),
        "has no effect in experiment baseline, which has no teacher": (run,),
        "distil.weight=2.0 has no effect": ("distil.weight=2",),
    }
    for said, overrides in cases.items():
        assert main(["train", str(features.path), "name=refused", *overrides]) == 1
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert said in err
    assert list(features.path.parent.glob("runs/refused*")) == []


# Its cost.


def test_the_plan_states_what_a_teacher_adds_to_training(
    features: Data, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command = ["plan", str(features.path), "experiment=distil", "--device", "cpu"]
    out = tmp_path / "plan.json"
    assert main([*command, f"init.teacher={features.pair}", "--json", str(out)]) == 0
    said = capsys.readouterr().out
    assert "forward, of the teacher" in said
    assert "nothing to testing" in said
    plan = json.loads(out.read_text())
    step = plan["steps"][0]
    # The pair runs two networks of the student's kind.
    assert step["teacher_flops"] == pytest.approx(2 * step["forward_flops"], rel=0.05)
    parameters = plan["parameters"]["forward"].values()
    student = 4 * sum(part["all"] for part in parameters)
    assert plan["fixed_bytes"]["the teacher's weights"] > 2 * student
    assert main(command) == 0
    assert "the teacher's cost, which needs init.teacher (RUN is in no run directory)" in capsys.readouterr().out
