"""Weights by name: downloaded once from the Hugging Face Hub, here from a server that speaks its protocol."""

from __future__ import annotations

import errno
import hashlib
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import layouts
import pytest
import torch
from builders import PIXELS, config_of, feature_data, video_data
from hub_server import Hub, serving
from processes import Running, ranks
from runs import ALONE, assert_same, baseline
from safetensors.torch import save
from torch import nn

from bitad.cli import main
from bitad.config.names import SIZES
from bitad.models.vit import VisionTransformer
from bitad.runtime import progress
from bitad.training.trainer import Trainer
from bitad.weights.checkpoint import convert_weights, load_checkpoint
from bitad.weights.files import BACKBONE_FILE, local_path, weights_path
from bitad.weights.hub import KNOWN, HubName, is_hub_name, similar_name

pytestmark = pytest.mark.usefixtures("one_thread")

NAME = "MCG-NJU/videomae-tiny"
KEY = f"hub:{NAME}"


@pytest.fixture(scope="module")
def content() -> bytes:
    """A tiny VideoMAE as Hugging Face's classifier."""
    torch.manual_seed(0)
    size = SIZES["tiny"]
    vit = VisionTransformer(
        dim=size.dim, depth=size.depth, heads=size.heads, mlp_dim=size.mlp_dim, image_size=PIXELS
    )
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.02)
    weights = layouts.huggingface_classifier(vit.state_dict())
    return save({name: weight.contiguous() for name, weight in weights.items()})


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "huggingface"


@pytest.fixture
def hub(content: bytes, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as hub:
        hub.files[NAME, "model.safetensors"] = content
        hub.use(monkeypatch, home)
        yield hub


def stopped(hub: Hub, home: Path, number: signal.Signals = signal.SIGKILL) -> Path:
    """Stops the command that downloads the file after 20,000 bytes; the unfinished file."""
    hub.stall_after = 21000
    program = (
        "import sys\n"
        "from huggingface_hub import constants\n"
        "constants.DOWNLOAD_CHUNK_SIZE = 20000\n"
        "from bitad.cli import main\n"
        f"sys.exit(main(['weights', 'download', '{NAME}']))\n"
    )
    process = Running(program=program, env=hub.environment(home))
    partial: list[Path] = []
    while not partial or partial[0].stat().st_size < 20000:
        assert process.poll() is None, process.output
        time.sleep(0.01)
        partial = list(home.rglob("*.incomplete"))
    process.send_signal(number)
    process.wait(60)
    assert hub.downloads == [None]
    assert partial[0].stat().st_size == 20000
    return partial[0]


def test_a_name_is_downloaded_once(
    hub: Hub, content: bytes, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sha256 = hashlib.sha256(content).hexdigest()
    for name in (NAME, KEY):
        assert main(["weights", "download", name]) == 0
        said = capsys.readouterr()
        path, size, hashed = said.out.splitlines()
        assert Path(path).read_bytes() == content
        assert Path(path).is_relative_to(home / "hub")
        assert (size.split(), hashed.split()) == (["size", f"{len(content):,}", "bytes"], ["SHA-256", sha256])
        assert (f"downloading it from {hub.url}" in said.err) == (name == NAME)
    assert len(hub.downloads) == 1
    (record,) = (home / "bitad").iterdir()
    assert record.read_text() == f"{sha256}  model.safetensors\n"  # as sha256sum has it


def test_a_name_stands_wherever_a_file_of_weights_does(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["weights", "inspect", KEY]) == 0
    said = capsys.readouterr()
    assert "model.safetensors: VideoMAE" in said.out
    assert "model.safetensors, SHA-256 " in said.err
    out = tmp_path / "vit.safetensors"
    assert main(["weights", "convert", KEY, str(out)]) == 0
    videos = video_data(tmp_path / "data", training=1, test=0).parent / "videos"
    features = ("features", str(videos), "--pixels", "32", "--device", "cpu", "--checkpoint")
    for weights, folder in ((KEY, "named"), (str(out), "converted")):
        assert main([*features, weights, "--out", str(tmp_path / folder)]) == 0
    one, other = ((tmp_path / folder / "train_0.npy").read_bytes() for folder in ("named", "converted"))
    assert one == other
    assert len(hub.downloads) == 1


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        (NAME, "main/model.safetensors"),
        (f"{NAME}@v1", "v1/model.safetensors"),
        (f"{NAME}:other.bin", "main/other.bin"),
        ("MCG-NJU/older", "main/pytorch_model.bin"),
    ],
)
def test_a_name_may_have_a_revision_and_a_file(hub: Hub, content: bytes, name: str, asked: str) -> None:
    hub.files[NAME, "other.bin"] = content
    hub.files["MCG-NJU/older", "pytorch_model.bin"] = content
    path = weights_path(Path(f"hub:{name}"))
    assert path.read_bytes() == content
    assert path.name == asked.partition("/")[2]
    assert hub.requests[-1][1].endswith(f"resolve/{asked}")
    assert str(HubName.of(name)) == f"hub:{name}"


def test_a_download_whose_connection_breaks_goes_on_where_it_stopped(
    hub: Hub, content: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants, file_download

    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
    hub.break_after = 5500
    assert weights_path(Path(KEY)).read_bytes() == content
    assert hub.downloads == [None, "bytes=5000-"]
    assert f"downloading {KEY}, model.safetensors (MB): 1 of {len(content) // 10**6}, " in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_command_continues_a_download_that_was_stopped(
    hub: Hub, content: bytes, home: Path, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    partial = stopped(hub, home, number)
    assert partial.parent == home / "hub" / "models--MCG-NJU--videomae-tiny" / "blobs"
    assert main(["weights", "download", NAME]) == 0
    said = capsys.readouterr()
    assert Path(said.out.splitlines()[0]).read_bytes() == content
    assert hub.downloads == [None, "bytes=20000-"]
    assert "continuing a download that was stopped at 0 of " in said.err
    assert not partial.exists()


def test_a_file_that_was_replaced_is_downloaded_from_its_start(hub: Hub, content: bytes, home: Path) -> None:
    partial = stopped(hub, home)
    hub.files[NAME, "model.safetensors"] = content[::-1]
    assert weights_path(Path(KEY)).read_bytes() == content[::-1]
    assert hub.downloads == [None, None]
    assert partial.name == f"{hashlib.sha256(content).hexdigest()}.incomplete"
    assert partial.exists()  # `hf cache prune` removes it


@pytest.mark.parametrize("part", [b"?" * 20000, b"?" * 3_000_000])
def test_a_damaged_part_of_a_download_is_not_used(
    hub: Hub, content: bytes, home: Path, part: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped(hub, home).write_bytes(part)
    assert 20000 < len(content) < 3_000_000
    assert main(["weights", "download", NAME]) == 0
    said = capsys.readouterr()
    assert Path(said.out.splitlines()[0]).read_bytes() == content
    longer = len(part) > len(content)
    assert hub.downloads == ([None, None] if longer else [None, "bytes=20000-", None])
    assert ("downloaded earlier is damaged: downloading all" in said.err) != longer


def test_a_file_that_arrives_with_another_hash_than_the_server_states_is_refused(
    hub: Hub, content: bytes, home: Path, refused: Callable[..., str]
) -> None:
    hub.damaged = True
    said = refused("weights", "download", NAME)
    first, later = (hashlib.sha256(one).hexdigest()[:12] for one in (content, content[::-1]))
    assert f"has the SHA-256 {first}..., the file received has {later}...; try again later, or download " in said
    assert [one.name for one in home.rglob("*") if one.is_file()] == [
        f"{hashlib.sha256(content).hexdigest()}.lock"
    ]
    hub.damaged = False
    assert main(["weights", "download", NAME]) == 0


def test_a_download_that_fails_leaves_nothing_and_can_be_repeated(
    hub: Hub, content: bytes, home: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import file_download

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the line is dead.")

    with monkeypatch.context() as patch:
        patch.setattr(file_download, "http_get", fail)
        said = refused("weights", "download", NAME)
    assert said == (
        f"{KEY} cannot be downloaded: the line is dead; try again later, or download model.safetensors or "
        f"pytorch_model.bin by hand from {hub.url}/{NAME}/tree/main and give the path of the file"
    )
    assert not list(home.rglob("*.incomplete")) + list(home.rglob("*.sha256"))
    assert main(["weights", "download", NAME]) == 0


def test_several_processes_continue_a_download_once(hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in hub.environment(home).items():
        monkeypatch.setenv(key, str(value))
    stopped(hub, home)
    program = (
        "from pathlib import Path\n"
        "from bitad.weights.files import weights_path\n"
        f"print(weights_path(Path('{KEY}')).stat().st_size)\n"
    )
    with ranks(3, program=program) as all_:
        said = [(process.communicate(timeout=100)[0], process.wait()) for process in all_]
    assert said == [(f"{len(hub.files[NAME, 'model.safetensors'])}\n", 0)] * 3
    assert hub.downloads == [None, "bytes=20000-"]


def test_a_file_that_is_not_the_first_download_is_refused(
    hub: Hub, content: bytes, home: Path, refused: Callable[..., str]
) -> None:
    assert main(["weights", "download", NAME]) == 0
    hub.files[NAME, "model.safetensors"] = content + b" "
    assert main(["weights", "download", NAME]) == 0  # the one in the cache
    shutil.rmtree(home / "hub")
    said = refused("weights", "inspect", KEY)
    first, later = (hashlib.sha256(one).hexdigest()[:12] for one in (content, content + b" "))
    assert f"{KEY} has changed: " in said
    assert f"has the SHA-256 {later}..., the first download had {first}..." in said
    (record,) = (home / "bitad").iterdir()
    assert f"remove {record}" in said
    record.unlink()
    assert main(["weights", "download", NAME]) == 0


def test_a_file_that_was_damaged_in_the_cache_is_refused_until_it_is_downloaded_again(
    hub: Hub, content: bytes, home: Path, refused: Callable[..., str]
) -> None:
    path = weights_path(Path(KEY))
    path.write_bytes(content[:-1])
    said = refused("weights", "inspect", KEY)
    folder = home / "hub" / "models--MCG-NJU--videomae-tiny"
    assert said.endswith(f"if it is damaged, remove {folder} to download it again")
    shutil.rmtree(folder)
    assert weights_path(Path(KEY)).read_bytes() == content


def test_a_cache_that_cannot_be_used_is_named_with_the_variable_that_moves_it(
    hub: Hub, home: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home.mkdir()
    (home / "hub").write_text("no folder")
    said = refused("weights", "download", NAME)
    assert said.startswith(f"{KEY}: the cache cannot be used ([Errno ")
    assert f"{home / 'hub'}" in said
    assert said.endswith("); set HF_HOME to a folder that you can write and that has room")
    (home / "hub").unlink()
    full = OSError(errno.ENOSPC, "No space left on device", str(home))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", Mock(side_effect=full))
        assert "the cache cannot be used ([Errno 28] No space left on device" in refused(
            "weights", "download", NAME
        )


def test_a_record_that_cannot_be_written_is_logged(
    hub: Hub, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home.mkdir()
    (home / "bitad").write_text("no folder")
    assert main(["weights", "download", NAME]) == 0
    assert "its SHA-256 cannot be recorded" in capsys.readouterr().err


def test_offline_the_cache_is_used_and_what_it_lacks_is_said(
    hub: Hub, home: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["weights", "download", NAME]) == 0
    hub.use(monkeypatch, home, offline=True)
    hub.requests.clear()
    assert main(["weights", "download", NAME]) == 0
    said = refused("weights", "download", "MCG-NJU/other")
    assert said == (
        f"hub:MCG-NJU/other is not in the cache {home / 'hub'}, and HF_HUB_OFFLINE forbids to download it; unset that, "
        f"or download model.safetensors or pytorch_model.bin by hand from {hub.url}/MCG-NJU/other/tree/main and give "
        "the path of the file"
    )
    assert hub.requests == []


def test_without_a_network_the_error_says_where_to_put_a_file_by_hand(
    home: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.utils import _http

    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)
    with serving() as hub:
        hub.use(monkeypatch, home)
    said = refused("weights", "download", NAME)
    assert said.startswith(f"{KEY} is not in the cache and cannot be downloaded: ")
    assert "; connect to the network, or download model.safetensors or pytorch_model.bin by hand from " in said
    assert said.count(KEY) == 1


def test_names_that_the_hub_does_not_have_are_refused(hub: Hub, refused: Callable[..., str]) -> None:
    hub.files["owner/gated", "model.safetensors"] = b""
    hub.gated.add("owner/gated")
    for name, expected in {
        "tiny": "'tiny' is not a name of weights; give hub:OWNER/NAME, hub:OWNER/NAME@REVISION or hub:OWNER/NAME:FILE",
        "a/b--c": "hub:a/b--c is not a name of weights: ",
        "MCG-NJU/videomae-smal": f"no such repository, or a private one; did you mean hub:{next(iter(KNOWN))}?",
        "x/y": f"no such repository, or a private one; known ones are {', '.join(KNOWN)}",
        f"{NAME}@v9": f"{KEY}@v9: the repository has no revision v9; leave it out",
        f"{NAME}:none.bin": f"{KEY}:none.bin: the repository has no none.bin; name one of its files, see {hub.url}",
        "owner/gated": f"hub:owner/gated: its owner grants access by request; ask at {hub.url}/owner/gated and set",
    }.items():
        said = refused("weights", "download", name)
        assert expected in said
        assert said.count(f"hub:{name}:") <= 1
    assert hub.downloads == []


def test_what_a_download_cannot_have_is_refused(hub: Hub, refused: Callable[..., str], tmp_path: Path) -> None:
    for option in (("out.safetensors",), ("--config", "playroom"), ("--json",)):
        assert "download takes a name alone" in refused("weights", "download", NAME, *option)
    assert "has no folder for the results; give one with --out" in refused("test", KEY, "--config", "playroom")
    assert hub.requests == []


def test_a_missing_file_is_named_with_both_ways(refused: Callable[..., str]) -> None:
    said = refused("weights", "inspect", "pretrained/vit-huge-p16_videomae-k400-pre_16x4x1_kinetics-400_my.pth")
    assert said.startswith("no weights at pretrained/vit-huge-p16")
    assert "; give a run directory or a file of weights, put there by hand, or a name to download, such as" in said
    assert said.endswith(" hub:MCG-NJU/videomae-huge-finetuned-kinetics")


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        ("vit.pth", "MCG-NJU/videomae-small-finetuned-kinetics"),
        ("a/vit-base-p16_videomae-k400.pth", "MCG-NJU/videomae-base-finetuned-kinetics"),
        ("vit-giant-p14_videomaev2-hybrid_pt_1200e_k710_ft_my.pth", "OpenGVLab/VideoMAEv2-giant"),
        ("OpenGVLab/VideoMAEv2-Large", "OpenGVLab/VideoMAEv2-Large"),
    ],
)
def test_the_name_for_a_missing_file_is_of_its_size(missing: str, named: str) -> None:
    assert similar_name(Path(missing)) == f"hub:{named}"
    assert HubName.of(named).repository == named


def test_only_weights_that_are_named_are_downloaded(hub: Hub, tmp_path: Path) -> None:
    assert not is_hub_name(tmp_path / "hub")
    assert local_path(Path(KEY)) == Path(KEY)  # what a checkpoint names: nobody asked for it
    assert hub.requests == []


def test_a_run_from_a_name_that_was_stopped_in_its_download_is_trained_resumed_offline_moved_and_tested(
    hub: Hub, home: Path, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = video_data(tmp_path / "data")
    always = ("training.epochs=2", "training.evaluate_from=1", "model.backbone.random=false")
    keys = (f"model.backbone.weights={KEY}", *always)
    stopped(hub, home)
    assert main(["train", str(data), *keys, "--until", "1", "--device", "cpu"]) == 0
    assert hub.downloads == [None, "bytes=20000-"]
    run = config_of(data, *keys).run_directory
    assert f"weights: {KEY}" in (run / "config.yaml").read_text()

    shutil.rmtree(home)
    hub.use(monkeypatch, home, offline=True)
    hub.requests.clear()
    assert main(["train", str(run / "config.yaml"), "--resume", "--device", "cpu"]) == 0
    moved = Path(shutil.move(run, tmp_path / "elsewhere"))
    assert main(["test", str(moved), "--device", "cpu"]) == 0
    assert hub.requests == []
    assert (moved / BACKBONE_FILE).is_file()

    (tmp_path / "model.safetensors").write_bytes(content)
    by_hand = (*always, f"model.backbone.weights={tmp_path / 'model.safetensors'}", "name=by_hand")
    assert main(["train", str(data), *by_hand, "--device", "cpu"]) == 0
    assert_same(load_checkpoint(moved).model, load_checkpoint(config_of(data, *by_hand).run_directory).model)


def test_an_impossible_name_is_refused_before_anything_is_read(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    data = video_data(tmp_path / "data", training=1, test=0)
    shutil.rmtree(data.parent / "videos")
    assert "'hub:small' is not a name of weights" in refused("train", data, "model.backbone.weights=hub:small")


def test_an_experiment_starts_from_baselines_that_are_named(hub: Hub, tmp_path: Path) -> None:
    data = feature_data(tmp_path / "data")
    run = baseline(data)
    convert_weights(run, tmp_path / "run.safetensors")
    hub.files["owner/baselines", "forward.safetensors"] = (tmp_path / "run.safetensors").read_bytes()
    one, other = (
        Trainer(
            config_of(
                data, "experiment=1-1", "pair.second=forward", f"init.forward={run}", f"init.reverse={second}"
            ),
            ALONE,
        ).network.state_dict()
        for second in (run, "hub:owner/baselines:forward.safetensors")
    )
    assert_same(dict(one), dict(other))
    assert len(hub.downloads) == 1
    named = ("init.forward=hub:owner/baselines:none.pt", f"init.reverse={run}")
    with pytest.raises(
        ValueError, match=r"^init\.forward: hub:owner/baselines:none\.pt: the repository has no none"
    ):
        Trainer(config_of(data, "experiment=1-1", "pair.second=forward", *named), ALONE)
