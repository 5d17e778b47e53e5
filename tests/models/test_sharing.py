"""Runs that are pushed to the Hub and pulled from it, here a server that speaks its protocol."""

from __future__ import annotations

import getpass
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from builders import CLASSES, config_of, feature_data, video_data
from hub_server import Hub, serving
from runs import assert_same, baseline, both_baselines
from safetensors import safe_open

from bitad.cli import main
from bitad.config.loading import without_folders
from bitad.config.schema import FIELDS_ALONE, Config
from bitad.weights.checkpoint import load_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

NAME = "ann/doors"
TOKEN = "hf_secret"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as hub:
        hub.use(monkeypatch, tmp_path / "huggingface")
        hub.token = TOKEN
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return feature_data(tmp_path_factory.mktemp("features") / "data", training=2, test=2)


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    """A run with an evaluation."""
    assert main(["train", str(data), "training.epochs=1"]) == 0
    return data.parent / "runs" / "tiny-forward-seed0"


def found_in(folder: Path) -> dict[str, dict[str, list[object]]]:
    """The detections in a folder, by file and video; files name the weights that found them."""
    files = (path for path in sorted(folder.glob("*.json")) if "detections" in path.name)
    found = {path.name: json.loads(path.read_text())["results"] for path in files}
    assert all(map(any, (results.values() for results in found.values())))
    return found


def test_a_run_is_pushed_and_pulled_and_finds_the_same(
    run: Path, data: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["weights", "push", str(run), NAME]) == 0
    assert capsys.readouterr().out == f"{hub.url}/{NAME}/commit/{1:040x}\n"
    assert hub.private == {NAME: True}
    out = tmp_path / "pulled"
    assert main(["weights", "pull", NAME, str(out)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"hub:{NAME}@{1:040x}", f"  folder     {out}"]
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "model.safetensors"]
    pulled, own = load_checkpoint(out), load_checkpoint(run)
    assert_same(pulled.model, own.model)
    assert pulled.operating_points == own.operating_points
    assert pulled.evaluation == own.evaluation
    folder = data.parent
    places = [
        f"data.annotations={folder / 'annotations.json'}",
        f"data.classes={folder / 'classes.txt'}",
        f"data.features={folder / 'features'}",
    ]
    assert main(["test", str(run), "--out", str(tmp_path / "own"), "--device", "cpu"]) == 0
    expected = found_in(tmp_path / "own")
    assert len(expected) == 2
    for number, place in enumerate((str(out), f"hub:{NAME}", f"hub:{NAME}@{1:040x}:model.safetensors")):
        tested = tmp_path / f"tested{number}"
        assert main(["test", place, *places, "--out", str(tested), "--device", "cpu"]) == 0
        assert found_in(tested) == expected


def test_a_pulled_detector_of_videos_finds_the_same(hub: Hub, tmp_path: Path) -> None:
    run = baseline(video_data(tmp_path / "data", training=2, test=1))
    video = tmp_path / "data" / "videos" / "test_0.mp4"
    assert main(["weights", "push", str(run), NAME, "--public"]) == 0
    assert hub.private == {NAME: False}
    for place, out in ((str(run), "own"), (f"hub:{NAME}", "shared")):
        assert (
            main(["detect", str(video), "--checkpoint", place, "--out", str(tmp_path / out), "--device", "cpu"])
            == 0
        )
    assert found_in(tmp_path / "shared") == found_in(tmp_path / "own") != {}
    card = hub.files[NAME, "README.md"].decode()
    assert f"bitad detect VIDEO.mp4 --checkpoint hub:{NAME} --out found" in card
    assert "videomae backbone tiny, 32 x 32 pixels" in card
    assert "were not evaluated" in card


def test_a_pair_is_shared_too(data: Path, hub: Hub, tmp_path: Path) -> None:
    output = f"output={tmp_path}"
    pair = baseline(data, output, "experiment=3-1", *both_baselines(data, output))
    assert main(["weights", "push", str(pair), NAME]) == 0
    assert main(["weights", "pull", NAME, str(tmp_path / "pair")]) == 0
    assert_same(load_checkpoint(tmp_path / "pair").model, load_checkpoint(pair).model)
    assert "forward and reverse" in hub.files[NAME, "README.md"].decode()


def test_the_card_says_what_it_is_and_nothing_of_this_machine(run: Path, hub: Hub, tmp_path: Path) -> None:
    assert main(["weights", "push", str(run), NAME]) == 0
    content = hub.files[NAME, "README.md"].decode()
    checkpoint = load_checkpoint(run)
    assert checkpoint.evaluation is not None
    for expected in (
        "library_name: bitad",
        "# doors\n",
        f"| average |\n| {' | '.join(['---'] * 6)} |",
        f"| {100 * checkpoint.evaluation['average_map']:.2f} |\n",
        "the epoch with the highest average was chosen on these videos",
        *(f"`{name}`" for name in CLASSES),
        "| annotations | `annotations.json` |",
        "| input | features of 8 channels |",
        f"bitad test hub:{NAME} data.annotations=ANNOTATIONS.json data.features=FEATURES --out results",
        f"bitad weights pull {NAME} FOLDER",
        "  features: features\n",
    ):
        assert expected in content
    (tmp_path / "model.safetensors").write_bytes(hub.files[NAME, "model.safetensors"])
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        metadata = json.dumps(file.metadata())
    for text in (content, metadata):
        for private in (str(run.parent.parent.parent), str(Path.home()), socket.gethostname(), "train_0"):
            assert private not in text
        assert not [word for word in text.replace("\\", "").replace('"', " ").split() if word.startswith("/")]
    assert f"/{getpass.getuser()}" not in content


def test_paths_lose_their_folders_and_names_stay(data: Path) -> None:
    document = config_of(data, "name=other").model_dump(mode="json")
    document["data"]["reversed_features"] = "/home/ann/private/reversed"
    document["init"]["forward"] = "hub:ann/forward:model.safetensors"
    document["init"]["teacher"] = ["/home/ann/runs/teacher", "runs/second/best.pt"]
    bare = without_folders(Config.model_validate(document, context=FIELDS_ALONE))
    assert bare.data.reversed_features == Path("reversed")
    assert bare.init.forward == Path("hub:ann/forward:model.safetensors")
    assert list(bare.init.teacher) == [Path("teacher"), Path("best.pt")]
    assert (bare.output, bare.name) == (Path("runs"), "other")


def test_a_second_push_is_a_new_version_and_pull_takes_the_newest(
    run: Path, data: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["weights", "push", str(run), NAME]) == 0
    assert main(["weights", "pull", NAME, str(tmp_path / "first")]) == 0
    assert main(["weights", "push", str(baseline(data, "seed=1")), NAME]) == 0
    assert main(["weights", "pull", NAME, str(tmp_path / "second")]) == 0
    assert main(["weights", "pull", f"{NAME}@{1:040x}", str(tmp_path / "again")]) == 0
    first, second, again = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second", "again")
    )
    assert first == again != second
    hub.use(monkeypatch, tmp_path / "huggingface", offline=True)
    assert main(["weights", "pull", f"{NAME}@{1:040x}", str(tmp_path / "offline")]) == 0
    monkeypatch.chdir(tmp_path)
    hub.use(monkeypatch, tmp_path / "huggingface")
    assert main(["weights", "pull", NAME]) == 0
    assert (tmp_path / "doors" / "model.safetensors").read_bytes() == second


def test_what_cannot_be_pushed_or_pulled_is_refused(
    run: Path, hub: Hub, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.files["ann/other", "model.safetensors"] = (run / "best.pt").read_bytes()
    assert "push needs a repository" in refused("weights", "push", run)
    assert "is not a name of weights" in refused("weights", "push", run, "doors")
    assert "push shares runs of BiTAD" in refused("weights", "push", run, NAME, "--config", "playroom")
    assert "leave out :model.bin" in refused("weights", "push", run, f"{NAME}:model.bin")
    assert "--public only applies to push" in refused("weights", "pull", NAME, "--public")
    assert "--json only applies to inspect" in refused("weights", "pull", NAME, "--json")
    assert "leave out --config" in refused("weights", "pull", NAME, "--config", "playroom")
    assert "no such repository at" in refused("weights", "pull", NAME, tmp_path / "new")
    assert "has no revision v9" in refused("weights", "pull", "ann/other@v9", tmp_path / "new")
    assert "is not empty; give another folder" in refused("weights", "pull", NAME, run)
    assert not (tmp_path / "new").exists()
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    said = refused("weights", "push", run, NAME)
    assert said == (
        f"hub:{NAME} cannot be written: {hub.url} knows no right of yours to it; set HF_TOKEN to a token with it, or "
        "run: hf auth login"
    )
    hub.use(monkeypatch, tmp_path / "huggingface", offline=True)
    assert "cannot be written: HF_HUB_OFFLINE forbids it; unset that" in refused("weights", "push", run, NAME)
    assert not hub.private
