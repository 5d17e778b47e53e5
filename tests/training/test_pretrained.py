"""Checkpoints name the frozen pre-trained transformer instead of holding it, and it is found again or asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import layouts
import pytest
import torch
import yaml
from builders import CLASSES, PIXELS, config_of, video_data
from runs import ALONE, assert_same
from torch import Tensor, nn

from bitad.cli import main
from bitad.config.names import SIZES
from bitad.config.schema import Config
from bitad.demo.jobs import Job
from bitad.models.adapters import is_adapter
from bitad.models.build import build_network
from bitad.models.vit import VisionTransformer
from bitad.runtime.log import set_up_logging
from bitad.training.checkpoints import CheckpointManager
from bitad.training.trainer import Trainer
from bitad.weights import loading as weights_module
from bitad.weights.checkpoint import Checkpoint, convert_weights, load_checkpoint
from bitad.weights.files import OURS, read_weights, write_safetensors
from bitad.weights.loading import Pretrained, content_hash, load_pretrained

pytestmark = pytest.mark.usefixtures("one_thread")

# Two epochs, of which the last is tested.
QUICK = ("training.epochs=2", "training.evaluate_from=1", "model.dropout=0.2")


def transformer(seed: int = 0) -> dict[str, Tensor]:
    """The weights of a transformer of the size of the data set's."""
    torch.manual_seed(seed)
    size = SIZES["tiny"]
    vit = VisionTransformer(dim=size.dim, depth=size.depth, heads=size.heads, mlp_dim=size.mlp_dim, image_size=PIXELS)
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.02)
    return vit.state_dict()


def write_vit(path: Path, seed: int = 0) -> Path:
    torch.save(layouts.videomae_finetuned(transformer(seed)), path)
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return video_data(tmp_path_factory.mktemp("videos") / "data")


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vit(tmp_path_factory.mktemp("pretrained") / "vit.pth")


@pytest.fixture(scope="module")
def whole(videos: Path, vit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    config = config_of(videos, *QUICK, f"model.backbone.weights={vit}", f"output={tmp_path_factory.mktemp('whole')}")
    Trainer(config, ALONE).run()
    return config.run_directory


@pytest.fixture
def moved(whole: Path, videos: Path, tmp_path: Path) -> Path:
    """A copy of that run, whose transformer is not where it was."""
    run = tmp_path / "runs" / whole.name
    shutil.copytree(whole, run)
    for name in ("best.pt", "last.pt", "last-1.pt"):
        content = torch.load(run / name, weights_only=True)
        content["pretrained"]["file"] = content["config"]["model"]["backbone"]["weights"] = str(tmp_path / "vit.pth")
        content["config"]["output"] = str(run.parent)
        torch.save(content, run / name)
    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., str]]:
    """What a command says that fails."""

    def fail(*command: object) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in command]) == 1
        *_, line = capsys.readouterr().err.splitlines()
        assert line.startswith(f"bitad {command[0]}: error: ")
        return line

    yield fail
    set_up_logging(None, show=False)


def network_of(config: Config) -> nn.Module:
    """As it is when a training begins, but for what trains, no value of which is as at the beginning."""
    torch.manual_seed(1)
    network = build_network(config, len(CLASSES))
    load_pretrained(network, config)
    for parameter in network.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    return network


def checkpoint_of(config: Config, network: nn.Module) -> Checkpoint:
    return Checkpoint(config, CLASSES, network.state_dict(), epoch=1, rate_hz=4.0, training={"step": 1})


def held(path: Path) -> set[str]:
    """The names of the weights in a checkpoint."""
    return set(read_weights(path)["model"])


def frozen(names: set[str]) -> set[str]:
    return {name for name in names if ".vit." in name and not is_adapter(name)}


def size_of(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)


# What is left out.


def test_a_runs_checkpoints_are_of_the_size_of_what_trains(videos: Path, vit: Path, whole: Path) -> None:
    network = build_network(config_of(videos), len(CLASSES))
    trained = size_of([parameter for parameter in network.parameters() if parameter.requires_grad])
    left_out = size_of(list(transformer().values()))
    assert left_out > 2_000_000
    assert held(whole / "best.pt") == {name for name, p in network.named_parameters() if p.requires_grad}
    # Each entry of the archive costs about 200 bytes, aligned to 64, and a name in the pickle.
    overhead = 600 * len(network.state_dict()) + 20_000
    assert trained < (whole / "best.pt").stat().st_size < trained + overhead
    # The averaged weights, the raw ones, and both moments of the optimiser.
    assert 4 * trained < (whole / "last.pt").stat().st_size < 4 * trained + 4 * overhead
    said = torch.load(whole / "best.pt", weights_only=True)["pretrained"]
    assert (said["file"], said["sha256"]) == (str(vit), content_hash(vit))


@pytest.mark.parametrize("experiment", ["baseline", "1", "2", "2x"])
@pytest.mark.parametrize("form", ["videomae", "mmaction2", "halved"])
def test_with_its_file_a_checkpoint_is_the_network_that_was_saved(
    experiment: str, form: str, videos: Path, tmp_path: Path
) -> None:
    path = tmp_path / "vit.safetensors"
    match form:
        case "videomae":
            torch.save(layouts.videomae_finetuned(transformer()), path := tmp_path / "vit.pth")
        case "mmaction2":  # with a position table
            torch.save(layouts.mmaction2(transformer()), path := tmp_path / "vit.pth")
        case "halved":
            write_safetensors({name: weight.half() for name, weight in transformer().items()}, path, said={})
    start = () if experiment in ("baseline", "1") else ("init.forward=none", "init.reverse=none")
    config = config_of(videos, f"experiment={experiment}", *start, f"model.backbone.weights={path}")
    network = network_of(config)
    CheckpointManager(tmp_path, keep=1).save_last(checkpoint_of(config, network))
    names = set(network.state_dict())
    assert held(tmp_path / "last.pt") == names - frozen(names)
    assert_same(dict(load_checkpoint(tmp_path).network().state_dict()), dict(network.state_dict()))


def test_the_transformer_is_looked_at_once_however_often_a_run_is_saved(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    monkeypatch.setattr(weights_module, "read_weights", lambda path: [read.append(path), read_weights(path)][1])
    config = config_of(videos, f"model.backbone.weights={write_vit(tmp_path / 'vit.pth', seed=2)}")
    checkpoint, keeper = checkpoint_of(config, network_of(config)), CheckpointManager(tmp_path, keep=2)
    read.clear()
    keeper.save_last(checkpoint)
    first = len(read)
    assert 1 <= first <= 2  # to compare, and to hash
    for _ in range(3):
        keeper.save_last(checkpoint)
        keeper.save_best(checkpoint)
    assert len(read) == first


@pytest.mark.parametrize("sides", [(0,), (1,), (0, 1)])
def test_a_transformer_that_is_not_the_files_stays_in_the_checkpoint(
    sides: tuple[int, ...], videos: Path, vit: Path, tmp_path: Path
) -> None:
    """As where a pair starts from two detectors of other projects: each has the transformer that it was trained on."""
    config = config_of(videos, "experiment=1", f"model.backbone.weights={vit}")
    network = network_of(config)
    prefixes = [("first.", "second.")[side] for side in sides]
    for prefix in prefixes:
        with torch.no_grad():
            network.get_parameter(f"{prefix}network.backbone.vit.blocks.3.mlp.0.bias")[-1] += 1e-6
    CheckpointManager(tmp_path, keep=1).save_last(checkpoint_of(config, network))
    names = set(network.state_dict())
    assert frozen(held(tmp_path / "last.pt")) == {name for name in frozen(names) if name.startswith(tuple(prefixes))}
    assert_same(dict(load_checkpoint(tmp_path).network().state_dict()), dict(network.state_dict()))


def test_a_transformer_that_nothing_names_stays_in_the_checkpoint(videos: Path, tmp_path: Path) -> None:
    config = config_of(videos)
    network = network_of(config)
    CheckpointManager(tmp_path, keep=1).save_last(checkpoint_of(config, network))
    assert held(tmp_path / "last.pt") == set(network.state_dict())
    assert_same(dict(load_checkpoint(tmp_path).network().state_dict()), dict(network.state_dict()))


@pytest.mark.parametrize("becomes", ["gone", "another", "damaged"])
def test_a_run_whose_file_goes_meanwhile_is_saved_all_the_same(becomes: str, videos: Path, tmp_path: Path) -> None:
    path = write_vit(tmp_path / "vit.pth")
    config = config_of(videos, f"model.backbone.weights={path}")
    network = network_of(config)
    path.unlink()
    if becomes == "another":
        write_vit(path, seed=5)
    elif becomes == "damaged":
        path.write_bytes(b"PK")
    CheckpointManager(tmp_path, keep=1).save_last(checkpoint_of(config, network))
    path.unlink(missing_ok=True)
    assert_same(dict(load_checkpoint(tmp_path).network().state_dict()), dict(network.state_dict()))


def test_checkpoints_that_hold_everything_are_still_read(whole: Path, tmp_path: Path) -> None:
    content = torch.load(whole / "last.pt", weights_only=True)
    complete = load_checkpoint(whole / "last.pt").whole()
    del content["pretrained"]
    content |= {"format": f"{OURS} 2", "model": complete.model}
    torch.save(content, tmp_path / "last.pt")
    assert_same(load_checkpoint(tmp_path).model, complete.model)
    assert_same(load_checkpoint(tmp_path).training, complete.training)


# Its content.


def test_its_content_is_the_same_in_every_form_and_for_every_detector_on_it(tmp_path: Path) -> None:
    vit = layouts.without_table(transformer())
    for name, content in (
        ("videomae.pth", layouts.videomae_finetuned(vit)),
        ("huggingface.bin", layouts.huggingface_model(vit)),
        ("mmaction.pth", layouts.mmaction2(vit)),
        ("adapted.pth", {**vit, "blocks.0.adapter.gamma": torch.ones(1)}),
    ):
        torch.save(content, tmp_path / name)
    convert_weights(tmp_path / "videomae.pth", tmp_path / "ours.safetensors")
    files = list(tmp_path.iterdir())
    assert len(files) == 5
    assert len({content_hash(path) for path in files}) == 1


@pytest.mark.parametrize("change", ["a bit", "a type", "a shape", "a name", "a table"])
def test_whatever_of_it_changes_its_content_is_another(change: str, tmp_path: Path) -> None:
    vit = layouts.without_table(transformer())
    torch.save(vit, tmp_path / "before.pth")
    before = content_hash(tmp_path / "before.pth")
    weight = vit["blocks.1.attn.proj.weight"]
    match change:
        case "a bit":
            weight.view(torch.int32)[3, 4] ^= 1
        case "a type":
            vit["blocks.1.attn.proj.weight"] = weight.double()
        case "a shape":
            vit["blocks.1.attn.proj.weight"] = weight.reshape(2, -1)
        case "a name":
            vit["blocks.1.attn.other.weight"] = vit.pop("blocks.1.attn.proj.weight")
        case "a table":
            vit["pos_embed"] = torch.zeros(1, 4, 96)
    torch.save(vit, tmp_path / "after.pth")
    assert (content_hash(tmp_path / "after.pth") != before) == (change != "a type")  # all are taken as float32


def test_a_file_that_was_replaced_is_read_again(tmp_path: Path) -> None:
    first = content_hash(write_vit(tmp_path / "vit.pth", seed=1))
    (tmp_path / "vit.pth").unlink()
    assert content_hash(write_vit(tmp_path / "vit.pth", seed=2)) != first


# Where it is looked for.


def commands(run: Path, videos: Path, out: Path) -> dict[str, tuple[object, ...]]:
    """Commands that need the whole network of a run."""
    video = videos.parent / "videos" / "test_0.mp4"
    pair = ("experiment=1-1", f"init.forward={run}", f"init.reverse={run}", "pair.second=forward")
    return {
        "test": ("test", run, "--out", out),
        "detect": ("detect", video, "--checkpoint", run, "--out", out),
        "features": ("features", video, "--checkpoint", run, "--out", out),
        "inspect": ("weights", "inspect", run / "best.pt"),
        "convert": ("weights", "convert", run, out / "run.safetensors"),
        "pair": ("train", videos, *pair, f"output={out}"),
        "resume": ("train", run / "config.yaml", f"output={run.parent}", "--resume"),
        "weights": ("train", videos, f"model.backbone.weights={run / 'best.pt'}", f"output={out}"),
    }


CASES = [*commands(Path(), Path(), Path())]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("there", ["nothing", "another"])
def test_where_it_is_not_there_that_is_said_with_what_to_do(
    case: str, there: str, moved: Path, videos: Path, vit: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    if there == "another":
        write_vit(tmp_path / "vit.pth", seed=5)
    name = "last.pt" if case == "resume" else "best.pt"
    overrides = (f"model.backbone.weights={tmp_path / 'vit.pth'}",) if case == "resume" else ()
    said = refused(*commands(moved, videos, tmp_path / "out")[case], *overrides)
    assert f"the pre-trained transformer of {moved / name}, {tmp_path / 'vit.pth'}" in said
    assert f"of content {content_hash(vit)[:12]}" in said
    if there == "another":
        assert f"is not what is there now: {tmp_path / 'vit.pth'} ({content_hash(tmp_path / 'vit.pth')[:12]})" in said
    else:
        assert "is not there" in said
    assert f"copy it to {moved / 'vit.pth'}, or name it by model.backbone.weights=PATH" in said
    if case == "pair":
        assert "init.forward: " in said
    shutil.copy(vit, moved / "vit.pth")  # as it says
    assert main([str(argument) for argument in (*commands(moved, videos, tmp_path / "out")[case], *overrides)]) == 0


def test_a_run_is_tested_with_the_file_named_anew_and_with_no_other(
    moved: Path, vit: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    command = ("test", moved, "--out", tmp_path / "out")
    another = write_vit(tmp_path / "another.pth", seed=5)
    said = refused(*command, f"model.backbone.weights={another}")
    assert f"model.backbone.weights={another} is not the pre-trained transformer of {moved / 'best.pt'}" in said
    assert f"{tmp_path / 'vit.pth'}, of content {content_hash(vit)[:12]}" in said
    assert "no weights at" in refused(*command, f"model.backbone.weights={tmp_path / 'none.pth'}")
    assert main([*map(str, command), f"model.backbone.weights={vit}"]) == 0


def test_a_baseline_is_started_from_with_the_file_that_the_run_names(
    moved: Path, videos: Path, vit: Path, tmp_path: Path
) -> None:
    command = commands(moved, videos, tmp_path / "out")["pair"]
    assert main([*map(str, command), f"model.backbone.weights={vit}", "training.epochs=1"]) == 0
    run = tmp_path / "out" / "tiny-1-1-two-forward-seed0"
    assert frozen(held(run / "last.pt")) == set()
    one, other = load_checkpoint(moved / "best.pt").whole(config_of(videos, f"model.backbone.weights={vit}")), run
    for name, tensor in load_checkpoint(other).network().state_dict().items():
        if frozen({name}):
            assert torch.equal(tensor, one.model[name.partition(".network.")[2]])


def test_a_run_goes_on_with_its_file_named_anew_as_if_nothing_had_happened(
    whole: Path, videos: Path, vit: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    path = shutil.copy(vit, tmp_path / "vit.pth")
    arguments = ["train", str(videos), *QUICK, f"output={tmp_path / 'runs'}", "--device", "cpu"]
    assert main([*arguments, f"model.backbone.weights={path}", "--until", "1"]) == 0
    convert_weights(path, tmp_path / "moved.safetensors")  # another form of the same
    path.unlink()
    another = write_vit(tmp_path / "another.pth", seed=5)
    said = refused(*arguments, "--resume", f"model.backbone.weights={another}")
    assert str(path) in said
    assert str(another) in said
    assert main([*arguments, "--resume", f"model.backbone.weights={tmp_path / 'moved.safetensors'}"]) == 0
    run = tmp_path / "runs" / whole.name
    said = torch.load(run / "last.pt", weights_only=True)["pretrained"]
    assert (said["file"], said["sha256"]) == (str(tmp_path / "moved.safetensors"), content_hash(vit))
    assert_same(load_checkpoint(whole / "last.pt").training, load_checkpoint(run / "last.pt").training)
    assert_same(load_checkpoint(whole / "last.pt").whole().model, load_checkpoint(run / "last.pt").whole().model)


def test_a_file_that_was_replaced_by_another_does_not_go_on(
    moved: Path, vit: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    """Under its own name no change of the configuration shows it."""
    write_vit(tmp_path / "vit.pth", seed=5)
    command = ("train", moved / "config.yaml", f"output={moved.parent}", "--resume")
    said = refused(*command, f"model.backbone.weights={tmp_path / 'vit.pth'}")
    assert content_hash(vit)[:12] in said


def test_a_converted_run_needs_no_other_file(moved: Path, whole: Path, vit: Path, tmp_path: Path) -> None:
    shutil.copy(vit, tmp_path / "vit.pth")
    convert_weights(moved, tmp_path / "run.safetensors")
    (tmp_path / "vit.pth").unlink()
    network, wanted = load_checkpoint(tmp_path / "run.safetensors").network(), load_checkpoint(whole).network()
    assert_same(dict(network.state_dict()), dict(wanted.state_dict()))


def test_whether_a_run_is_done_is_seen_without_its_transformer(moved: Path, videos: Path, tmp_path: Path) -> None:
    named = f"model.backbone.weights={tmp_path / 'vit.pth'}"
    assert not (tmp_path / "vit.pth").exists()
    assert Job(str(videos), (*QUICK, named, f"output={moved.parent}")).is_done()


def test_a_checkpoint_that_is_called_as_its_file_was_does_not_look_for_it_in_itself(
    moved: Path, vit: Path, tmp_path: Path
) -> None:
    checkpoint = load_checkpoint(moved / "best.pt")
    assert checkpoint.pretrained is not None
    named = replace(
        checkpoint,
        config=config_of(moved / "config.yaml"),
        pretrained=replace(checkpoint.pretrained, file="none/best.pt"),
    )
    assert named.config.model.backbone is not None
    lost = named.config.model.backbone.model_copy(update={"weights": None})
    model = named.config.model.model_copy(update={"backbone": lost})
    with pytest.raises(FileNotFoundError, match=r"none/best\.pt .*is not there; copy it to .*/best\.pt"):
        replace(named, config=named.config.model_copy(update={"model": model})).network()


# What a damaged checkpoint says.


@pytest.mark.parametrize("said", [1, {}, {"file": "x"}, {"file": 1, "sha256": "", "positions": 1, "networks": []}])
def test_what_is_said_of_it_unsoundly_is_refused(said: Any, moved: Path, refused: Callable[..., str]) -> None:
    content = torch.load(moved / "best.pt", weights_only=True)
    content["pretrained"] = said
    torch.save(content, moved / "best.pt")
    for command in (("test", moved), ("weights", "inspect", moved / "best.pt")):
        assert f"{moved / 'best.pt'}" in (line := refused(*command))
        assert "does not say soundly which pre-trained transformer" in line


def test_what_it_says_is_read_as_it_was_written() -> None:
    pretrained = Pretrained("package:vit.safetensors", "ab" * 32, 1568, ("backbone.vit.",))
    said = json.loads(json.dumps(pretrained.to_json()))
    assert Pretrained.said_in({"format": f"{OURS} 3", "pretrained": said}) == pretrained
    assert Pretrained.said_in({"format": "another's", "pretrained": said}) is None


def test_inspection_says_where_it_is(whole: Path, vit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "inspect", str(whole / "best.pt")]) == 0
    text = capsys.readouterr().out
    assert f"elsewhere  the pre-trained transformer, of content {content_hash(vit)[:12]}" in text
    assert str(vit) in text
    assert "nothing missing, nothing unexpected" in text
    assert main(["weights", "inspect", str(whole / "best.pt"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pretrained"]["sha256"] == content_hash(vit)


# Where nothing fills it.

NOTHING = ("model.backbone.random=false", "model.backbone.weights=null")


@pytest.fixture
def unasked(videos: Path, tmp_path: Path) -> Path:
    """That configuration, as it is written by who does not think of weights."""
    document = yaml.safe_load(videos.read_text())
    document["model"]["backbone"].pop("random", None)
    path = tmp_path / "unasked.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.mark.parametrize("experiment", ["baseline", "1"])
def test_a_training_around_random_frozen_weights_is_refused_before_it_starts(
    unasked: Path, tmp_path: Path, refused: Callable[..., str], experiment: str
) -> None:
    said = refused("train", unasked, f"experiment={experiment}", f"output={tmp_path / 'runs'}", *QUICK)
    assert "model.backbone.weights is null: the transformer is frozen and would keep random weights" in said
    assert "model.backbone.random=true" in said
    assert not (tmp_path / "runs").exists()
    with pytest.raises(ValueError, match=r"model\.backbone\.weights is null"):
        network_of(config_of(unasked))


def test_a_plan_needs_no_weights(unasked: Path) -> None:
    assert main(["plan", str(unasked)]) == 0


def test_a_baseline_without_the_frozen_transformer_begins_no_pair(
    whole: Path, videos: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    """As a file of an earlier version would be that trained around no file, or one that was cut by hand."""
    content = torch.load(whole / "best.pt", weights_only=True)
    torch.save({**content, "pretrained": None}, tmp_path / "best.pt")
    pair = ("experiment=1-1", "pair.second=forward", f"init.forward={tmp_path}", f"init.reverse={whole}")
    said = refused("train", videos, *QUICK, *NOTHING, *pair, f"output={tmp_path / 'runs'}")
    assert f"weights of init.forward={tmp_path}" in said
    assert "do not fit the network; 55 missing: backbone.vit." in said


def test_random_frozen_weights_may_be_asked_for(videos: Path, tmp_path: Path) -> None:
    config = config_of(videos, *QUICK, "model.backbone.random=true", f"output={tmp_path}")
    assert Trainer(config, ALONE).run() >= 0


def test_a_whole_detector_is_tested_with_a_configuration_without_weights(videos: Path, tmp_path: Path) -> None:
    network = network_of(config_of(videos))
    torch.save(layouts.opentad_file(network.state_dict()), tmp_path / "epoch_9.pth")
    command = ["test", str(tmp_path / "epoch_9.pth"), "--config", str(videos), *NOTHING, "--out", str(tmp_path / "out")]
    assert main(command) == 0


def test_a_pair_from_baselines_and_a_resumed_run_need_no_weights_of_their_own(
    whole: Path, videos: Path, tmp_path: Path
) -> None:
    pair = ("experiment=1-1", "pair.second=forward", f"init.forward={whole}", f"init.reverse={whole}")
    run = ("train", str(videos), *QUICK, *NOTHING, *pair, f"output={tmp_path}")
    assert main([*run, "--until", "1"]) == 0
    assert main([*run, "--resume"]) == 0


def test_a_run_from_before_it_could_be_asked_for_is_resumed(videos: Path, tmp_path: Path) -> None:
    config = config_of(videos, *QUICK, f"output={tmp_path}")
    Trainer(config, ALONE).run(until=1)
    content = torch.load(config.run_directory / "last.pt", weights_only=True)
    del content["config"]["model"]["backbone"]["random"]
    torch.save(content, config.run_directory / "last.pt")
    assert main(["train", str(videos), *QUICK, *NOTHING, f"output={tmp_path}", "--resume"]) == 0


@pytest.mark.parametrize("lacking", ["a weight", "a block", "all that is known"])
def test_a_file_that_fills_only_part_of_the_frozen_transformer_is_refused(
    videos: Path, tmp_path: Path, refused: Callable[..., str], lacking: str
) -> None:
    weights = transformer()
    kept = {
        "a weight": [name for name in weights if name != "blocks.2.norm1.weight"],
        "a block": [name for name in weights if not name.startswith("blocks.3.")],
        "all that is known": [],
    }[lacking]
    part = {name: weights[name] for name in kept} or {"encoder.something": torch.zeros(2, 2)}
    torch.save(layouts.videomae_finetuned(part) if kept else part, tmp_path / "part.pth")
    said = refused(
        "train", videos, "model.backbone.random=true", f"model.backbone.weights={tmp_path / 'part.pth'}",
        f"output={tmp_path / 'runs'}",
    )  # fmt: skip
    assert str(tmp_path / "part.pth") in said
    assert not list(tmp_path.rglob("*.pt"))
