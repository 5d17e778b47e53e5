"""Half precision and steps in several batches train like single precision and one batch."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import config_of, feature_data, video_data
from runs import ALONE, assert_same_run, both_baselines, records
from torch import Tensor

from bitad.data.samples import collate
from bitad.data.sources import build_source, read_test_ground_truth
from bitad.inference.detect import detect
from bitad.training.step import Learner
from bitad.training.trainer import Trainer

NOTHING_DROPPED = "model.drop_path=0"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, tuple[str, str]]]:
    """Data sets with their baselines."""
    folder = tmp_path_factory.mktemp("data")
    paths = {"features": feature_data(folder / "features"), "videos": video_data(folder / "videos", training=4)}
    return {name: (path, both_baselines(path)) for name, path in paths.items()}


@cache
def gradients_of_a_step(path: Path, windows: int, batch: int, *overrides: str) -> dict[str, Tensor]:
    """What the learners are given in a step over the first windows, in batches; before clipping, but unscaled."""
    trainer = Trainer(config_of(path, "name=new", NOTHING_DROPPED, *overrides), ALONE)
    seen: dict[str, Tensor] = {}
    clip = Learner.clip

    def looking(learner: Learner) -> float:
        for name, parameter in learner.module.named_parameters():
            if parameter.grad is not None:
                seen[f"{learner.name} {name}"] = parameter.grad.clone()
        return clip(learner)

    trainer.network.train()
    samples = [trainer.windows[i] for i in range(windows)]
    parts = [samples[i : i + batch] for i in range(0, windows, batch)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "clip", looking)
        step = trainer.train_step([collate(part, trainer.config.window.steps) for part in parts])
    assert step.fault is None
    seen |= {f"loss {name}": torch.stack([*losses]) for name, losses in step.losses.items()}
    if step.extra is not None:
        seen |= dict([step.extra])
    seen |= {
        f"normaliser {one.name}": one.loss.get_buffer("normaliser").clone() for one in trainer.train_step.learners
    }
    return seen


# Steps in several batches.


@pytest.mark.parametrize(
    ("kind", "experiment"),
    [("features", "baseline"), ("features", "1-1"), ("features", "1x"), ("features", "3-1"), ("videos", "2")],
)
@pytest.mark.parametrize("batch", [1, 2])
def test_several_batches_to_a_step_have_the_losses_and_gradients_of_one(
    data: dict[str, tuple[Path, tuple[str, str]]], kind: str, experiment: str, batch: int
) -> None:
    path, init = data[kind]
    init = init if experiment in ("1-1", "3-1", "2", "1x") else ()
    whole, parts = (gradients_of_a_step(path, 4, size, f"experiment={experiment}", *init) for size in (4, batch))
    assert whole.keys() == parts.keys()
    assert len(whole) > 20
    for name, gradient in whole.items():
        torch.testing.assert_close(
            parts[name], gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item() + 1e-7
        )


def test_a_run_in_several_batches_to_a_step_is_that_of_one_batch(
    data: dict[str, tuple[Path, tuple[str, str]]], tmp_path: Path
) -> None:
    path, _ = data["features"]
    how = (NOTHING_DROPPED, "training.windows_per_video=3", "training.epochs=2")
    for name, batch, accumulate in (("one", 4, 1), ("several", 2, 2)):
        those = (f"training.batch={batch}", f"training.accumulate={accumulate}", f"output={tmp_path / name}")
        Trainer(config_of(path, *how, *those), ALONE).run()
    one, several = (
        records(tmp_path / name / "tiny-forward-seed0", kind="training") for name in ("one", "several")
    )
    assert len(one) == len(several) > 0
    for mine, theirs in zip(one, several, strict=True):
        assert mine["step"] == theirs["step"]
        assert mine["lr"] == pytest.approx(theirs["lr"])
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3)


def test_a_run_in_several_batches_resumes_to_the_bit(
    data: dict[str, tuple[Path, tuple[str, str]]], tmp_path: Path
) -> None:
    path, _ = data["features"]
    how = (
        "training.batch=1",
        "training.accumulate=2",
        "model.dropout=0.2",
        "training.epochs=2",
        "training.evaluate_from=1",
    )
    several = [
        config_of(path, *how, "model.dropout=0.2", f"output={tmp_path / name}") for name in ("whole", "parts")
    ]
    Trainer(several[0], ALONE).run()
    Trainer(several[1], ALONE).run(until=1)
    Trainer(several[1], ALONE, resume=True).run()
    assert_same_run(several[0].run_directory, several[1].run_directory)


# Half precision.


@pytest.mark.parametrize(
    ("experiment", "precision"),
    [
        *((experiment, "bf16") for experiment in ("baseline", "1-1", "2", "2x", "3-1", "3-2")),
        # With a scaler of gradients: for one graph, for two, and for a joint one.
        *((experiment, "fp16") for experiment in ("baseline", "1-1", "2x", "3-1")),
    ],
)
def test_the_losses_of_half_precision_are_near_those_of_single(
    data: dict[str, tuple[Path, tuple[str, str]]], experiment: str, precision: str
) -> None:
    path, init = data["videos"]
    init = () if experiment == "baseline" else init
    found = [
        gradients_of_a_step(path, 2, 2, f"experiment={experiment}", *init, f"training.precision={what}")
        for what in ("fp32", precision)
    ]
    single, half = found
    differences = []
    for name, value in single.items():
        if name.startswith("loss"):
            torch.testing.assert_close(half[name], value, rtol=0.05, atol=1e-3)
            differences.append((half[name] - value).abs().max().item())
    assert max(differences) > 0  # another precision, indeed
    flat = [
        torch.cat([v.flatten() for k, v in one.items() if not k.startswith(("loss", "norm"))]) for one in found
    ]
    assert torch.cosine_similarity(*flat, dim=0) > 0.95


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("backbone", ["window", "video"])
def test_half_precision_finds_nearly_the_same(
    data: dict[str, tuple[Path, tuple[str, str]]], precision: str, backbone: str
) -> None:
    path, _ = data["videos"]
    found = []
    for what in ("fp32", precision):
        how = (
            f"test.precision={what}",
            f"test.backbone={backbone}",
            "test.score_threshold=0",
            "test.nms.method=none",
        )
        config = config_of(path, *how, "test.rounding=false")
        truth = read_test_ground_truth(config)
        network = Trainer(config.model_copy(update={"name": "unseen"}), ALONE).network.eval()
        found.append(detect(network, truth, build_source(config), config, ALONE))
    for one, other in zip(*(results.bases.values() for results in found), strict=True):
        assert len(one) == len(other) > 0
        np.testing.assert_allclose(np.sort(other.scores), np.sort(one.scores), rtol=0.1)
        assert not np.array_equal(other.scores, one.scores)


def test_half_precision_keeps_weights_and_averages_single(
    data: dict[str, tuple[Path, tuple[str, str]]], tmp_path: Path
) -> None:
    path, _ = data["videos"]
    trainer = Trainer(config_of(path, "training.precision=bf16", "training.epochs=1", f"output={tmp_path}"), ALONE)
    trainer.run()
    (learner,) = trainer.train_step.learners
    moments = [v for state in learner.optimizer.state.values() for v in state.values()]
    for tensor in (*learner.trainable, *learner.ema.average.values(), *moments):
        assert tensor.dtype == torch.float32


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_run_in_half_precision_resumes_to_the_bit_with_its_scale(
    data: dict[str, tuple[Path, tuple[str, str]]], precision: str, tmp_path: Path
) -> None:
    path, _ = data["features"]
    how = (f"training.precision={precision}", "training.epochs=2", "training.evaluate_from=1")
    several = [config_of(path, *how, f"output={tmp_path / name}") for name in ("whole", "parts")]
    whole = Trainer(several[0], ALONE)
    whole.run()
    assert whole.train_step.scaler.is_enabled() == (precision == "fp16")
    Trainer(several[1], ALONE).run(until=1)
    Trainer(several[1], ALONE, resume=True).run()
    assert_same_run(several[0].run_directory, several[1].run_directory)


def test_where_half_precision_overflows_the_step_is_skipped_and_the_next_scaled_by_less(
    data: dict[str, tuple[Path, tuple[str, str]]], tmp_path: Path
) -> None:
    path, _ = data["features"]
    trainer = Trainer(config_of(path, "training.precision=fp16", "training.epochs=1", f"output={tmp_path}"), ALONE)
    trainer.train_step.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
    before = {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}
    trainer.network.train()
    batch = next(iter(trainer.loader))
    step = trainer._take_step([batch])
    assert step.fault is None
    assert trainer.train_step.scaler.get_scale() == 2.0**29
    for name, tensor in trainer.network.state_dict().items():
        assert torch.equal(tensor, before[name])
    for _ in range(24):
        step = trainer._take_step([batch])
    assert all(torch.isfinite(torch.tensor(norm)) for norm in step.norms.values())
    assert any(not torch.equal(tensor, before[name]) for name, tensor in trainer.network.state_dict().items())


def test_a_record_of_a_skipped_step_is_json(data: dict[str, tuple[Path, tuple[str, str]]], tmp_path: Path) -> None:
    path, _ = data["features"]
    trainer = Trainer(config_of(path, "training.precision=fp16", "training.epochs=1", f"output={tmp_path}"), ALONE)
    trainer.train_step.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    trainer.run()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    lines = (trainer.directory / "metrics.jsonl").read_text().splitlines()
    first = json.loads(lines[0], parse_constant=refuse)
    assert first["gradient_norm"] is None
