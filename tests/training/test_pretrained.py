"""A run has its frozen transformer in one file beside its checkpoints, so that it is complete wherever it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import layouts
import pytest
import torch
import yaml
from builders import CLASSES, PIXELS, config_of, video_data
from runs import ALONE, assert_same, assert_same_run
from torch import Tensor, nn

from bitad.cli import main
from bitad.config.names import SIZES
from bitad.config.schema import Config
from bitad.demo import Job
from bitad.models.build import build_network
from bitad.models.vit import VisionTransformer, is_adapter
from bitad.training.checkpoints import CheckpointManager, load_initial
from bitad.training.trainer import Trainer
from bitad.weights.checkpoint import Checkpoint, convert_weights, load_checkpoint, save_checkpoint
from bitad.weights.files import BACKBONE_FILE, OURS, read_weights, write_safetensors
from bitad.weights.loading import Weights, load_pretrained, read_complete, transformer_sha256

pytestmark = pytest.mark.usefixtures("one_thread")

# Two epochs, of which the last is tested.
QUICK = ("training.epochs=2", "training.evaluate_from=1", "model.dropout=0.2")


def transformer(seed: int = 0) -> dict[str, Tensor]:
    """The weights of a transformer of the size of the data set's."""
    torch.manual_seed(seed)
    size = SIZES["tiny"]
    vit = VisionTransformer(
        dim=size.dim, depth=size.depth, heads=size.heads, mlp_dim=size.mlp_dim, image_size=PIXELS
    )
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
    config = config_of(
        videos, *QUICK, f"model.backbone.weights={vit}", f"output={tmp_path_factory.mktemp('whole')}"
    )
    Trainer(config, ALONE).run()
    return config.run_directory


@pytest.fixture(scope="module")
def without_file(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of that run, whose pre-trained file and first directory are not there any more."""
    run = Path(shutil.copytree(whole, tmp_path_factory.mktemp("moved") / whole.name))
    for name in ("best.pt", "last.pt", "last-1.pt"):
        change(run / name, lambda content: content["config"]["model"]["backbone"].update(weights="gone/vit.pth"))
    return run


@pytest.fixture
def moved(without_file: Path, tmp_path: Path) -> Path:
    """A copy of that one, to change."""
    return Path(shutil.copytree(without_file, tmp_path / "elsewhere" / without_file.name))


@pytest.fixture
def form_3(whole: Path, vit: Path, tmp_path: Path) -> Path:
    """That run as an earlier version wrote it: its checkpoints refer to the pre-trained file, which is not there."""
    run = Path(shutil.copytree(whole, tmp_path / "form 3" / whole.name))
    (run / BACKBONE_FILE).unlink()
    said = {
        "file": str(tmp_path / "vit.pth"),
        "sha256": sha256_of(vit),
        "positions": 32,
        "networks": ["backbone.vit."],
    }
    for name in ("best.pt", "last.pt", "last-1.pt"):
        change(run / name, lambda content: content.update(format=f"{OURS} 3", pretrained=said, backbone=None))
        change(run / name, lambda content: content["config"]["model"]["backbone"].update(weights=said["file"]))
    return run


def change(path: Path, by: Callable[[dict[str, Any]], object]) -> None:
    """Changes the content of a checkpoint."""
    content = torch.load(path, weights_only=True)
    by(content)
    torch.save(content, path)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a command says that fails."""

    def fail(*command: object) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in command]) == 1
        *_, line = capsys.readouterr().err.splitlines()
        assert line.startswith(f"bitad {command[0]}: error: ")
        return line

    return fail


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


def sha256_of(path: Path) -> str:
    """Of the transformer in a file."""
    return transformer_sha256(Weights.of(read_complete(path)).backbone(str(path)))


def save(checkpoint: Checkpoint, folder: Path) -> None:
    """As a run does."""
    keeper = CheckpointManager(folder, keep=1)
    keeper.save_backbone(checkpoint.model)
    keeper.save_last(checkpoint)


# The frozen transformer is in one file of the run.


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
    assert left_out < (whole / BACKBONE_FILE).stat().st_size < left_out + overhead
    assert_same(read_weights(whole / BACKBONE_FILE), dict(transformer()))
    said = torch.load(whole / "best.pt", weights_only=True)["backbone"]
    assert said == {"sha256": sha256_of(whole / BACKBONE_FILE), "prefixes": ["backbone.vit."]}


@pytest.mark.parametrize(
    ("form", "experiment"),
    [
        *((form, "baseline") for form in ("videomae", "mmaction2", "halved", "random")),
        *(("videomae", experiment) for experiment in ("1", "2", "2x")),
        ("random", "1"),
    ],
)
def test_with_that_file_a_checkpoint_is_the_network_that_was_saved(
    form: str, experiment: str, videos: Path, tmp_path: Path
) -> None:
    path = tmp_path / "vit.safetensors"
    match form:
        case "videomae":
            torch.save(layouts.videomae_finetuned(transformer()), path := tmp_path / "vit.pth")
        case "mmaction2":  # with a position table
            torch.save(layouts.mmaction2(transformer()), path := tmp_path / "vit.pth")
        case "halved":
            write_safetensors({name: weight.half() for name, weight in transformer().items()}, path)
    start = () if experiment in ("baseline", "1") else ("init.forward=none", "init.reverse=none")
    weights = () if form == "random" else (f"model.backbone.weights={path}",)
    config = config_of(videos, f"experiment={experiment}", *start, *weights)
    network = network_of(config)
    if form == "random" and experiment != "baseline":
        network.second.load_state_dict(network.first.state_dict())
    save(checkpoint_of(config, network), tmp_path / "run")
    path.unlink(missing_ok=True)
    names = set(network.state_dict())
    assert held(tmp_path / "run" / "last.pt") == names - frozen(names)
    assert_same(dict(load_checkpoint(tmp_path / "run").network().state_dict()), dict(network.state_dict()))


def test_the_file_is_written_once_and_again_only_where_it_is_not_right(
    videos: Path, vit: Path, tmp_path: Path
) -> None:
    config = config_of(videos, f"model.backbone.weights={vit}")
    checkpoint, file = checkpoint_of(config, network_of(config)), tmp_path / BACKBONE_FILE

    def written() -> tuple[int, int]:
        save(checkpoint, tmp_path)
        assert_same(read_weights(file), dict(transformer()))
        return file.stat().st_ino, file.stat().st_mtime_ns

    first = written()
    assert written() == first
    file.write_bytes(file.read_bytes()[:-1])
    assert written() != first
    write_safetensors(transformer(seed=5), file)
    assert written() != first
    assert {path.name for path in tmp_path.iterdir()} == {"last.pt", BACKBONE_FILE}


def test_a_file_that_is_removed_while_its_run_trains_is_written_again(
    videos: Path, vit: Path, tmp_path: Path
) -> None:
    config = config_of(videos, f"model.backbone.weights={vit}")
    checkpoint, keeper = checkpoint_of(config, network_of(config)), CheckpointManager(tmp_path, keep=1)
    keeper.save_backbone(checkpoint.model)
    (tmp_path / BACKBONE_FILE).unlink()
    keeper.save_best(checkpoint)
    assert_same(load_checkpoint(tmp_path).model, dict(checkpoint.model))


def test_of_two_transformers_the_second_stays_in_the_checkpoint(videos: Path, vit: Path, tmp_path: Path) -> None:
    """As where a pair starts from two detectors of other projects: each has the transformer that it was trained on."""
    config = config_of(videos, "experiment=1", f"model.backbone.weights={vit}")
    network = network_of(config)
    with torch.no_grad():
        network.get_parameter("second.network.backbone.vit.blocks.3.mlp.0.bias")[-1] += 1e-6
    save(checkpoint_of(config, network), tmp_path)
    names = set(network.state_dict())
    assert frozen(held(tmp_path / "last.pt")) == {name for name in frozen(names) if name.startswith("second.")}
    assert_same(dict(load_checkpoint(tmp_path).network().state_dict()), dict(network.state_dict()))


def test_a_checkpoint_that_is_saved_elsewhere_holds_everything(whole: Path, tmp_path: Path) -> None:
    save_checkpoint(load_checkpoint(whole), tmp_path / "one.pt")
    assert frozen(held(tmp_path / "one.pt"))
    assert_same(load_checkpoint(tmp_path / "one.pt").model, load_checkpoint(whole).model)


@pytest.mark.parametrize("of", ["a bit", "a type", "a shape", "a name", "a weight"])
def test_whatever_of_a_transformer_changes_its_hash_is_another(of: str) -> None:
    vit = transformer()
    before = transformer_sha256(vit)
    weight = vit["blocks.1.attn.proj.weight"]
    match of:
        case "a bit":
            weight.view(torch.int32)[3, 4] ^= 1
        case "a type":
            vit["blocks.1.attn.proj.weight"] = weight.view(torch.int32)
        case "a shape":
            vit["blocks.1.attn.proj.weight"] = weight.reshape(2, -1)
        case "a name":
            vit["blocks.1.attn.other.weight"] = vit.pop("blocks.1.attn.proj.weight")
        case "a weight":
            del vit["blocks.1.attn.proj.weight"]
    assert transformer_sha256(vit) != before


# A run is complete wherever its directory is.


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
        "pair": ("train", videos, "training.epochs=1", *pair, f"output={out}"),
        "resume": ("train", run / "config.yaml", f"output={run.parent}", "--resume"),
        "weights": (
            "train",
            videos,
            "training.epochs=1",
            f"model.backbone.weights={run / 'best.pt'}",
            f"output={out}",
        ),
    }


CASES = [*commands(Path(), Path(), Path())]


def succeeds(*command: object) -> bool:
    return main([str(argument) for argument in command]) == 0


def test_a_run_that_was_moved_gives_the_same_bytes_without_its_pre_trained_file(
    videos: Path, tmp_path: Path
) -> None:
    config = config_of(
        videos, *QUICK, f"model.backbone.weights={write_vit(tmp_path / 'vit.pth')}", f"output={tmp_path / 'runs'}"
    )
    Trainer(config, ALONE).run()

    def given(run: Path, out: Path) -> dict[str, bytes]:
        for verb in ("test", "detect"):
            assert succeeds(*commands(run, videos, out / verb)[verb])
        return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.json")}

    before = given(config.run_directory, tmp_path / "before")
    run = Path(shutil.copytree(config.run_directory, tmp_path / "elsewhere" / "a run"))
    shutil.rmtree(tmp_path / "runs")
    (tmp_path / "vit.pth").unlink()
    after = given(run, tmp_path / "after")
    assert {"test/detections.json", "test/metrics.json", "detect/detections.json"} <= before.keys()
    assert after == before


@pytest.mark.parametrize("experiment", ["2", "2x", "3-1"])
def test_two_networks_start_from_runs_that_were_moved(
    experiment: str, moved: Path, videos: Path, tmp_path: Path
) -> None:
    reverse = Path(shutil.copytree(moved, tmp_path / "reverse"))
    change(reverse / "best.pt", lambda content: content["config"].update(direction="reverse"))
    config = config_of(videos, f"experiment={experiment}", f"init.forward={moved}", f"init.reverse={reverse}")
    network = build_network(config, len(CLASSES))
    load_initial(network, config, CLASSES)
    loaded = network.state_dict()
    for name, tensor in load_checkpoint(moved).model.items():
        for side in ("first", "second"):
            assert torch.equal(loaded[f"{side}.network.{name}"], tensor)


def test_a_run_that_was_moved_is_resumed_to_the_same_bits(whole: Path, videos: Path, tmp_path: Path) -> None:
    path = write_vit(tmp_path / "vit.pth")
    arguments = ["train", videos, *QUICK, f"model.backbone.weights={path}", "--device", "cpu"]
    assert succeeds(*arguments, f"output={tmp_path / 'runs'}", "--until", 1)
    path.unlink()
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    file = tmp_path / "elsewhere" / whole.name / BACKBONE_FILE
    before = file.stat().st_ino
    assert succeeds(*arguments, f"output={tmp_path / 'elsewhere'}", "--resume")
    assert file.stat().st_ino == before  # not written again
    assert_same_run(whole, file.parent)


@pytest.mark.parametrize("case", CASES)
def test_every_command_takes_a_run_that_was_moved_and_names_a_transformer_that_is_missing_or_damaged(
    case: str, moved: Path, videos: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    file = moved / BACKBONE_FILE
    right = file.read_bytes()
    checkpoint = moved / ("last.pt" if case == "resume" else "best.pt")
    command = commands(moved, videos, tmp_path / "out")[case]
    if case == "resume":
        command = (*command, "model.backbone.weights=gone/vit.pth")
    file.unlink()
    missing = refused(*command)
    write_safetensors(transformer(seed=5), file)
    another = refused(*command)
    file.write_bytes(right[:-100])
    cut_off = refused(*command)
    faults = {"is missing": missing, "has other content": another, "damaged or cut off": cut_off}
    for fault, line in faults.items():
        assert f"the frozen transformer of {checkpoint} is not found: {file} " in line
        assert fault in line
        assert f"; copy it to {file} from where the checkpoint was trained" in line
    if case == "pair":
        assert all("init.forward: " in line for line in faults.values())
    file.write_bytes(right)
    assert succeeds(*command)


def test_another_pre_trained_file_is_refused_and_another_form_of_it_is_not(
    moved: Path, vit: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    another = write_vit(tmp_path / "another.pth", seed=5)
    test = ("test", moved, "--out", tmp_path / "out")
    said = refused(*test, f"model.backbone.weights={another}")
    assert f"model.backbone.weights={another} is not the transformer of {moved / 'best.pt'}" in said
    assert "no weights at" in refused(*test, f"model.backbone.weights={tmp_path / 'none.pth'}")
    resume = ("train", moved / "config.yaml", f"output={moved.parent}", "--resume")
    said = refused(*resume, f"model.backbone.weights={another}")
    assert f"model.backbone.weights was gone/vit.pth, is {another}" in said
    convert_weights(vit, tmp_path / "form.safetensors")
    assert succeeds(*test, f"model.backbone.weights={tmp_path / 'form.safetensors'}")
    assert succeeds(*resume, f"model.backbone.weights={tmp_path / 'form.safetensors'}")


def test_a_converted_run_needs_no_other_file(moved: Path, whole: Path, tmp_path: Path) -> None:
    convert_weights(moved, tmp_path / "run.safetensors")
    network, wanted = load_checkpoint(tmp_path / "run.safetensors").network(), load_checkpoint(whole).network()
    assert_same(dict(network.state_dict()), dict(wanted.state_dict()))


def test_whether_a_run_that_was_moved_is_done_is_seen(moved: Path, videos: Path) -> None:
    assert Job(str(videos), (*QUICK, "model.backbone.weights=gone/vit.pth", f"output={moved.parent}")).is_done()


def test_a_run_without_a_checkpoint_is_not_its_transformer(moved: Path, refused: Callable[..., str]) -> None:
    for path in moved.glob("*.pt"):
        path.unlink()
    assert f"run {moved} has no best.pt or last.pt yet" in refused("test", moved)


def test_inspection_says_where_it_is(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "inspect", str(whole / "best.pt")]) == 0
    text = capsys.readouterr().out
    assert f"the frozen transformer is in {BACKBONE_FILE}" in text
    assert "nothing missing, nothing unexpected" in text
    assert main(["weights", "inspect", str(whole / "best.pt"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["backbone_file"] == BACKBONE_FILE


@pytest.mark.parametrize("said", [1, {}, {"sha256": "x"}, {"sha256": 1, "prefixes": []}])
def test_a_reference_that_is_not_sound_is_refused(said: Any, moved: Path, refused: Callable[..., str]) -> None:
    change(moved / "best.pt", lambda content: content.update(backbone=said))
    for command in (("test", moved), ("weights", "inspect", moved / "best.pt")):
        assert f"{moved / 'best.pt'} is a damaged checkpoint, without a valid backbone" in refused(*command)


# Checkpoints of earlier versions.


def test_checkpoints_that_hold_everything_are_still_read(whole: Path, tmp_path: Path) -> None:
    complete = load_checkpoint(whole / "last.pt")
    save_checkpoint(complete, tmp_path / "last.pt")
    change(tmp_path / "last.pt", lambda content: content.update(format=f"{OURS} 2"))
    assert_same(load_checkpoint(tmp_path).model, complete.model)
    assert_same(load_checkpoint(tmp_path).training, complete.training)


@pytest.mark.parametrize("place", ["where it was", "beside the checkpoint", "in another form"])
def test_checkpoints_that_refer_to_the_pre_trained_file_are_still_read(
    place: str, form_3: Path, whole: Path, vit: Path, tmp_path: Path
) -> None:
    match place:
        case "where it was":
            shutil.copy(vit, tmp_path / "vit.pth")
        case "beside the checkpoint":
            shutil.copy(vit, form_3 / "vit.pth")
        case "in another form":
            torch.save(layouts.huggingface_model(layouts.without_table(transformer())), tmp_path / "vit.pth")
    assert_same(load_checkpoint(form_3).model, load_checkpoint(whole).model)


@pytest.mark.parametrize("there", ["nothing", "another"])
def test_where_their_pre_trained_file_is_not_found_it_is_named_with_what_to_do(
    there: str, form_3: Path, videos: Path, vit: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    file = tmp_path / "vit.pth"
    faults = f"{file} is missing; {form_3 / 'vit.pth'} is missing"
    if there == "another":
        write_vit(file, seed=5)
        faults = f"{form_3 / 'vit.pth'} is missing; {file} has other content"
    command = commands(form_3, videos, tmp_path / "out")["test"]
    said = (
        f"the frozen transformer of {form_3 / 'best.pt'} is not found: {faults}; copy it to {form_3 / 'vit.pth'}"
    )
    assert said in refused(*command)
    shutil.copy(vit, form_3 / "vit.pth")  # as it says
    assert succeeds(*command)


def test_a_resumed_run_of_an_earlier_version_becomes_complete(
    form_3: Path, whole: Path, vit: Path, tmp_path: Path
) -> None:
    shutil.copy(vit, tmp_path / "vit.pth")
    resume = ("train", form_3 / "config.yaml", f"output={form_3.parent}", "--resume")
    assert succeeds(*resume, f"model.backbone.weights={tmp_path / 'vit.pth'}", "training.epochs=2")
    (form_3 / "last-1.pt").rename(form_3 / "last.pt")
    assert succeeds(*resume, f"model.backbone.weights={tmp_path / 'vit.pth'}")
    (tmp_path / "vit.pth").unlink()
    assert_same(load_checkpoint(form_3 / "last.pt").model, load_checkpoint(whole / "last.pt").model)


def test_a_checkpoint_that_is_called_as_its_pre_trained_file_is_not_read_for_it(
    form_3: Path, refused: Callable[..., str]
) -> None:
    change(form_3 / "best.pt", lambda content: content["pretrained"].update(file="none/best.pt"))
    assert "none/best.pt is missing" in refused("test", form_3)


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
    assert "model.backbone.weights is null: the frozen transformer would keep random weights" in said
    assert "model.backbone.random=true" in said
    assert not (tmp_path / "runs").exists()
    with pytest.raises(ValueError, match=r"model\.backbone\.weights is null"):
        network_of(config_of(unasked))


def test_a_baseline_without_the_frozen_transformer_begins_no_pair(
    whole: Path, videos: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    """As a file of an earlier version would be that trained around no file, or one that was cut by hand."""
    content = torch.load(whole / "best.pt", weights_only=True)
    torch.save({**content, "backbone": None}, tmp_path / "best.pt")
    pair = ("experiment=1-1", "pair.second=forward", f"init.forward={tmp_path}", f"init.reverse={whole}")
    said = refused("train", videos, *QUICK, *NOTHING, *pair, f"output={tmp_path / 'runs'}")
    assert f"weights of init.forward={tmp_path}" in said
    assert "do not fit the network: 55 missing: backbone.vit." in said


def test_random_frozen_weights_may_be_asked_for(videos: Path, tmp_path: Path) -> None:
    config = config_of(videos, *QUICK, "model.backbone.random=true", f"output={tmp_path}")
    assert Trainer(config, ALONE).run() >= 0


def test_a_whole_detector_is_tested_with_a_configuration_without_weights(videos: Path, tmp_path: Path) -> None:
    network = network_of(config_of(videos))
    torch.save(layouts.opentad_file(network.state_dict()), tmp_path / "epoch_9.pth")
    command = [
        "test",
        str(tmp_path / "epoch_9.pth"),
        "--config",
        str(videos),
        *NOTHING,
        "--out",
        str(tmp_path / "out"),
    ]
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
