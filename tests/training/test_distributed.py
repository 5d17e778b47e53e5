"""Several processes are one with their batches put together, and say so where they cannot be."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import config_of, feature_data, video_data
from processes import free_port, ranks
from runs import ALONE, assert_same_run, both_baselines
from torch import Tensor, nn

from bitad.config.schema import Config
from bitad.data.detections import Detections, read_detections
from bitad.data.formats.database import read_annotations
from bitad.data.sources import build_source
from bitad.inference.detect import detect
from bitad.runtime.distributed import CPU_CAN_SHARD, Ranks, process_group
from bitad.runtime.environment import set_up_process
from bitad.training.trainer import Trainer
from bitad.weights.checkpoint import load_checkpoint

PROGRAM = """
import json, os, sys
from bitad.cli import main
for port, arguments in json.loads(sys.argv[1]):
    os.environ["MASTER_PORT"] = str(port)
    if status := main(arguments):
        sys.exit(status)
"""


def run_together(world: int, *commands: Sequence[str]) -> list[str]:
    """Runs commands of `bitad`, one after the other, in processes that know each other as torchrun's do.

    Returns:
        what each process said on standard output.
    """
    work = [(free_port(), [*command, "--device", "cpu"]) for command in commands]
    with ranks(world, json.dumps(work), program=PROGRAM) as members:
        said = [member.communicate(timeout=200) for member in members]
        assert [member.returncode for member in members] == [0] * world, said
    return [out for out, _ in said]


# By what they are called here: the experiment, or what else is asked for.
EXPERIMENTS = ("baseline", "1s", "1-1", "3-1", "2", *(("3-1, sharded", "2, sharded") if CPU_CAN_SHARD else ()))


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Config], list[str]]:
    """Runs of two processes with batches of 2, by experiment, and what the processes said."""
    set_up_process(1)
    folder = tmp_path_factory.mktemp("data")
    features = feature_data(folder / "features", training=5, test=3)
    videos = video_data(folder / "videos", training=5, test=2)
    inits = {
        path: both_baselines(path, f"output={folder / path.parent.name}-baselines") for path in (features, videos)
    }
    several = ("model.drop_path=0", "training.windows_per_video=5", "test.candidates=200")
    runs = {}
    for name in EXPERIMENTS:
        experiment, _, shard = name.partition(", ")
        path = videos if experiment == "2" else features
        epochs = 2 if experiment == "baseline" else 1
        how = [f"experiment={experiment}", f"training.epochs={epochs}", f"training.evaluate_every={epochs}"]
        if experiment == "1s":
            how += ["pair.direction_embedding=true", "data.reversal={alpha: unknown, beta: gamma}"]
        elif experiment != "baseline":
            how += inits[path]
        if shard:
            how += ["training.shard=true", "name=sharded"]
        runs[name] = (path, (*several, *how))
    said = run_together(2, *(["train", str(path), *those] for path, those in runs.values()))
    return {name: config_of(path, *those) for name, (path, those) in runs.items()}, said


@pytest.fixture(scope="module")
def alone(
    together: tuple[dict[str, Config], list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Trainer, dict[str, Tensor]]]:
    """Trains an experiment in one process with batches of 4, once; gives its untrained weights too."""

    @cache
    def train(experiment: str) -> tuple[Trainer, dict[str, Tensor]]:
        config = together[0][experiment]
        set_up_process(1)
        training = config.training.model_copy(update={"batch": 4})
        output = tmp_path_factory.mktemp("alone")
        trainer = Trainer(config.model_copy(update={"output": output, "training": training}), ALONE)
        untrained = {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}
        trainer.run()
        return trainer, untrained

    return train


def recorded(config: Config) -> list[dict[str, Any]]:
    """The records of training steps that a run has left."""
    lines = [json.loads(line) for line in (config.run_directory / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "training"]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_two_processes_train_the_network_of_one_with_the_double_batch(
    together: tuple[dict[str, Config], list[str]],
    alone: Callable[[str], tuple[Trainer, dict[str, Tensor]]],
    experiment: str,
) -> None:
    config = together[0][experiment]
    trainer, untrained = alone(experiment.removesuffix(", sharded"))  # sharding needs several processes
    one, two = (load_checkpoint(c.run_directory / "last.pt") for c in (trainer.config, config))
    assert one.training is not None
    assert two.training is not None
    assert one.training["step"] == two.training["step"] == 6 * config.training.epochs
    assert one.training["learners"].keys() == two.training["learners"].keys()
    walked = 0.0
    for learner in trainer.train_step.learners:
        mine, theirs = (found.training["learners"][learner.name] for found in (one, two))
        torch.testing.assert_close(mine["loss"], theirs["loss"])
        # Keys' biases have no gradient but rounding errors, which Adam enlarges: an absolute bound, against a walk of
        # 1e-2.
        for name, weight in mine["raw"].items():
            whole = learner.prefix + name
            torch.testing.assert_close(theirs["raw"][name], weight, rtol=0, atol=2e-4)
            torch.testing.assert_close(two.model[whole], one.model[whole], rtol=0, atol=2e-4)
            walked = max(walked, (weight - untrained[whole]).abs().max().item())
    assert walked > 5e-3
    # Adam does not mind by what a loss is multiplied; the records show it.
    for first, second in zip(recorded(trainer.config), recorded(config), strict=True):
        assert first.keys() == second.keys()
        for figure in ("step", "loss", "classification", "regression", "gradient_norm", "lr"):
            assert second[figure] == pytest.approx(first[figure], rel=1e-3)
        for figure in ("losses", "gradient_norms"):
            assert second.get(figure, {}) == pytest.approx(first.get(figure, {}), rel=1e-3)


def columns(detections: Detections) -> list[np.ndarray]:
    return [detections.video, detections.segments, detections.scores, detections.labels]


@pytest.mark.parametrize(
    "experiment", [one for one in ("baseline", "2", "3-1", "3-1, sharded") if one in EXPERIMENTS]
)
def test_two_processes_find_what_one_finds(together: tuple[dict[str, Config], list[str]], experiment: str) -> None:
    config = together[0][experiment]
    truth = read_annotations(config.data.annotations, classes=config.data.classes).subset("validation")
    network = load_checkpoint(config.run_directory / "best.pt").network()
    alone = detect(network, truth, build_source(config), config, ALONE)
    for name, found in (("", alone.merged), *((f".{basis}", found) for basis, found in alone.bases.items())):
        if name and len(alone.bases) == 1:
            continue
        shared = read_detections(config.run_directory / f"detections{name}.json")
        expected = found if shared.basis == "forward" else found.reversed()
        assert shared.videos == expected.videos
        assert len(shared) > 0
        for one, other in zip(columns(expected), columns(shared), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.skipif(not CPU_CAN_SHARD, reason="this PyTorch cannot shard on a CPU")
@pytest.mark.slow
def test_a_sharded_run_resumes_to_the_bit_and_with_whole_weights_too(tmp_path: Path) -> None:
    path = video_data(tmp_path / "data", training=4)
    plain = ("training.windows_per_video=2", "training.epochs=2", "model.drop_path=0")
    how = ("training.shard=true", *plain)
    whole, parts, unsharded = (
        config_of(path, *how, f"output={tmp_path / name}") for name in ("whole", "parts", "unsharded")
    )
    begin = ["train", str(path), *how]
    run_together(
        2,
        [*begin, f"output={tmp_path / 'whole'}"],
        [*begin, f"output={tmp_path / 'parts'}", "--until", "1"],
        [*begin, f"output={tmp_path / 'unsharded'}", "--until", "1"],
        [*begin, f"output={tmp_path / 'parts'}", "--resume"],
        ["train", str(path), *plain, "training.shard=false", f"output={tmp_path / 'unsharded'}", "--resume"],
    )
    assert_same_run(whole.run_directory, parts.run_directory)
    one, other = (load_checkpoint(config.run_directory / "last.pt") for config in (whole, unsharded))
    assert one.epoch == other.epoch == 2
    for name, weight in one.model.items():
        torch.testing.assert_close(other.model[name], weight, rtol=0, atol=2e-4)


def test_the_first_process_alone_writes_and_speaks(together: tuple[dict[str, Config], list[str]]) -> None:
    configs, said = together
    assert said[0].count("best average mAP") == len(configs)
    assert said[1] == ""
    for config in configs.values():
        log = (config.run_directory / "log.txt").read_text()
        assert len(re.findall("an effective batch of 4", log)) == 1
        # Every tenth step from the first on, and the evaluation.
        lines = (config.run_directory / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == (3 if config.training.epochs == 2 else 2)


@pytest.mark.parametrize(("total", "world"), [(7, 2), (7, 3), (1, 4), (0, 2)])
def test_every_piece_of_work_is_in_exactly_one_processs_share(total: int, world: int) -> None:
    shares = [Ranks(rank, world, torch.device("cpu")).share(total) for rank in range(world)]
    assert sorted(i for share in shares for i in share) == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_alone_needs_no_others() -> None:
    model = nn.Linear(2, 2)
    assert ALONE.is_main
    assert ALONE.wrap(model) is model
    assert ALONE.gather("piece") == ["piece"]
    assert ALONE.total(torch.tensor(3.0)) == 3
    ALONE.barrier()


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with process_group("cpu") as ranks:
        assert ranks == ALONE


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"cuda.*device cpu"), process_group("cuda"):
        pass
    with process_group() as ranks:
        assert ranks.device.type == "cpu"


def test_a_device_that_no_machine_has_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'gpu'; give cpu, cuda"), process_group("gpu"):
        pass


@pytest.mark.parametrize(
    ("asked", "got"), [(None, "cuda:3"), ("cuda", "cuda:3"), ("cuda:1", "cuda:1"), ("cpu", "cpu")]
)
def test_each_process_takes_the_gpu_of_its_own_number(
    monkeypatch: pytest.MonkeyPatch, asked: str | None, got: str
) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", "3")
    with process_group(asked) as ranks:
        assert ranks.device == torch.device(got)
    assert chosen == ([] if got == "cpu" else [torch.device(got)])


def test_sharding_is_refused_where_pytorch_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitad.runtime.distributed.CPU_CAN_SHARD", False)
    with pytest.raises(
        ValueError, match=r"^training\.shard on a CPU needs a newer PyTorch than .*; update it, use GPUs"
    ):
        Ranks(0, 2, torch.device("cpu")).wrap(torch.nn.Linear(2, 2), parts=[])
