"""Folders of videos, features and annotations: what in them is read, what is passed over, and what fails alone."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
from builders import FPS, numbered_picture, video_data

from bitad.cli import main
from bitad.data.feature_files import FeatureStore
from bitad.runtime.files import read_json, write_json
from bitad.video.files import find_video, list_videos, require_video_file
from bitad.video.writer import write_video

TINY = ("--checkpoint", "package:playroom_backbone.safetensors", "--pixels", "32", "--device", "cpu")
COMMANDS = ("features", "reverse")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_video(path, map(numbered_picture, range(16)), fps=FPS)
    return path


@pytest.fixture
def folder(film: Path, tmp_path: Path) -> Path:
    """A folder with the video `good.mp4`."""
    (tmp_path / "videos").mkdir()
    shutil.copy(film, tmp_path / "videos" / "good.mp4")
    return tmp_path / "videos"


def run(command: str, src: Path, dst: Path) -> int:
    return main(
        ["reverse", str(src), str(dst), "--workers", "0"]
        if command == "reverse"
        else ["features", str(src), *TINY, "--out", str(dst)]
    )


def written(command: str, dst: Path) -> list[str]:
    """The outputs in a folder and its sub-folders, without suffix."""
    suffixes = (".npy",) if command == "features" else (".mp4", ".MP4")
    return sorted(
        path.relative_to(dst).with_suffix("").as_posix() for path in dst.rglob("*") if path.suffix in suffixes
    )


def spoil(folder: Path, how: str, film: Path) -> None:
    """Put something into a folder that is called like a video and is none."""
    path = folder / f"bad {how}.mp4"
    if how == "a link to":
        path.symlink_to(folder / "nowhere.mp4")
    elif how == "symbolic links":
        path.symlink_to(path.name)
    elif how == "a folder":
        path.mkdir()
    elif how == "a named pipe":
        os.mkfifo(path)
    elif how == "a socket":
        with socket.socket(socket.AF_UNIX) as listener:
            here = Path.cwd()
            os.chdir(folder)  # the path of a socket must be short
            listener.bind(path.name)
            os.chdir(here)
    elif how == "an empty file":
        path.touch()
    elif how == "name is not UTF-8":
        shutil.copy(film, os.fsencode(folder) + b"/b\xff.mp4")
    elif how == "name too long":
        shutil.copy(film, folder / f"{'x' * 252}.ts")  # its outputs' suffixes are longer


SPOILT = [
    "a link to",
    "symbolic links",
    "a folder",
    "a named pipe",
    "a socket",
    "an empty file",
    "name is not UTF-8",
    "name too long",
]


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither such files nor such names")
@pytest.mark.parametrize("command", COMMANDS)
def test_what_cannot_be_a_video_fails_by_name_and_the_others_are_done(
    command: str, folder: Path, film: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for how in SPOILT:
        try:
            spoil(folder, how, film)
        except OSError:  # a file system that has no such names
            continue
    assert run(command, folder, folder.parent / "out") == 1
    out, err = capsys.readouterr()
    failed = len(list(folder.iterdir())) - 1
    assert failed >= len(SPOILT) - 1
    assert f"1 {'done' if command == 'features' else 'reversed'}, 0 kept from before, {failed} failed" in out
    lines = [line for line in err.splitlines() if "error: " in line]
    assert len(lines) == failed
    for how in SPOILT[:-1]:
        assert any(how in line for line in lines), how
    assert written(command, folder.parent / "out") == ["good"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_name_of_253_bytes_does_not_hold_up_the_others(
    command: str, folder: Path, film: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(film, folder / f"{'가' * 83}.mp4")
    run(command, folder, folder.parent / "out")
    assert "good" in written(command, folder.parent / "out")
    assert " 0 kept from before, " in capsys.readouterr().out  # and it comes to its end


@pytest.mark.parametrize("command", COMMANDS)
def test_hidden_files_and_those_of_file_managers_are_passed_over(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("._good.mp4", ".hidden.mp4", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (folder / name).write_bytes(b"\0\5\x16\7")
    for name in ("__MACOSX", ".Trashes", "__MACOSX/sub"):
        (folder / name).mkdir()
        (folder / name / "other.mp4").write_bytes(b"\0\5\x16\7")
    assert run(command, folder, folder.parent / "out") == 0
    assert capsys.readouterr().out.startswith("1 ")
    assert written(command, folder.parent / "out") == ["good"]


def test_a_hidden_folder_is_read_where_it_is_named(folder: Path) -> None:
    hidden = folder.rename(folder.with_name(".videos"))
    assert list_videos(hidden) == [hidden / "good.mp4"]


@pytest.mark.parametrize("command", COMMANDS)
def test_videos_in_sub_folders_are_found(command: str, folder: Path, film: Path, tmp_path: Path) -> None:
    for name in ("P01/P01_01.MP4", "P01/P01_02.MP4", "P02/rgb/P02_01.MP4"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(film, folder / name)
    (folder / "P02" / "up").symlink_to(folder, target_is_directory=True)
    assert run(command, folder, tmp_path / "out") == 0
    placed = ["P01/P01_01", "P01/P01_02", "P02/rgb/P02_01", "good"]
    expected = placed if command == "reverse" else sorted(name.rpartition("/")[2] for name in placed)
    assert written(command, tmp_path / "out") == expected


def test_a_linked_sub_folder_is_read(folder: Path, film: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    shutil.copy(film, tmp_path / "disk" / "far.mp4")
    (folder / "P01").symlink_to(tmp_path / "disk", target_is_directory=True)
    assert list_videos(folder) == [folder / "good.mp4", folder / "P01" / "far.mp4"]
    assert find_video(folder, "far") == folder / "P01" / "far.mp4"


@pytest.mark.parametrize("command", COMMANDS)
def test_two_videos_of_one_name_are_refused_before_any_work(
    command: str, folder: Path, film: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in ("a", "b"):
        (folder / place).mkdir()
        shutil.copy(film, folder / place / f"same.{'mp4' if place == 'a' else 'mkv'}")
    assert run(command, folder, folder.parent / "out") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{folder / 'a' / 'same.mp4'} and {folder / 'b' / 'same.mkv'} have the same name" in err
    assert not (folder.parent / "out").exists()


def test_reversed_videos_in_the_folder_itself_are_not_reversed_again(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("reverse", folder, folder / "reversed") == 0
    assert run("reverse", folder, folder / "reversed") == 0
    assert "0 reversed, 1 kept from before" in capsys.readouterr().out
    assert written("reverse", folder) == ["good", "reversed/good"]


def test_a_sub_folder_that_cannot_be_listed_fails_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = folder / "lost"
    locked.mkdir()
    scandir = os.scandir

    def denied(path: Path | str) -> object:
        if Path(path) == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    assert list_videos(folder) == [folder / "good.mp4", locked]
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ValueError, match="lost: a folder that cannot be listed: Permission denied"):
        require_video_file(locked)
    with pytest.raises(ValueError, match=r"good.mp4: cannot be read: Permission denied"):
        require_video_file(folder / "good.mp4")


# Videos of annotations.


def test_a_video_is_found_in_sub_folders_by_its_name(folder: Path, film: Path) -> None:
    for name in ("P01/v.mp4", "P02/w.MKV", ".old/v.mp4", "__MACOSX/v.mp4", "P01/good.mp4"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(film, folder / name)
    assert find_video(folder, "v") == folder / "P01" / "v.mp4"
    assert find_video(folder, "w") == folder / "P02" / "w.MKV"
    assert find_video(folder, "v.mp4") == folder / "P01" / "v.mp4"
    assert find_video(folder, "good") == folder / "good.mp4"
    assert find_video(folder, "P01/v") == folder / "P01" / "v.mp4"
    with pytest.raises(FileNotFoundError, match="no video 'x'"):
        find_video(folder, "x")
    with pytest.raises(FileNotFoundError, match="no video"):
        find_video(folder, "x" * 300)
    shutil.copy(film, folder / "P02" / "v.mkv")
    with pytest.raises(ValueError, match=r"P01/v.mp4 and .*P02/v.mkv are both called 'v'"):
        find_video(folder, "v")
    (folder / "P01" / "v.mp4").unlink()
    assert find_video(folder, "v") == folder / "P02" / "v.mkv"


def test_a_folder_that_has_not_changed_is_listed_once(
    folder: Path, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [folder, *(folder / f"P{number}" for number in range(3))]
    for place in places[1:]:
        place.mkdir()
        shutil.copy(film, place / f"{place.name}_1.mp4")
    for place in places:
        os.utime(place, ns=(10**18, 10**18))
    listed: list[object] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (listed.append(path), scandir(path))[1])
    for _ in range(3):
        for place in places[1:]:
            assert find_video(folder, f"{place.name}_1") == place / f"{place.name}_1.mp4"
    assert len(listed) == len(places)
    shutil.copy(film, places[1] / "new.mp4")
    assert find_video(folder, "new") == places[1] / "new.mp4"


def test_annotations_are_checked_against_videos_in_sub_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = video_data(tmp_path / "data", training=1, test=1)
    videos, annotations = data.parent / "videos", data.parent / "annotations.json"
    (videos / "P01").mkdir()
    (videos / "train_0.mp4").rename(videos / "P01" / "train_0.mp4")
    assert main(["annotations", "check", str(annotations), "--videos", str(videos)]) == 0
    (videos / "P02").mkdir()
    shutil.copy(videos / "P01" / "train_0.mp4", videos / "P02")
    capsys.readouterr()
    assert main(["annotations", "check", str(annotations), "--videos", str(videos)]) == 1
    assert "are both called 'train_0'" in "".join(capsys.readouterr())


def test_a_detector_trains_on_videos_in_sub_folders(tmp_path: Path) -> None:
    data = video_data(tmp_path / "data")
    videos = data.parent / "videos"
    for path in list(videos.iterdir()):
        (videos / path.stem).mkdir()
        path.rename(videos / path.stem / path.name)
    changes = ("training.epochs=1", f"output={tmp_path / 'runs'}", "window.steps=16")
    assert main(["train", str(data), *changes, "--device", "cpu"]) == 0


# Features and annotations.


def test_hidden_files_are_no_features(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.ones((4, 3), np.float32))
    for name in ("._v.npy", ".v.npy", "._w.npz"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    assert FeatureStore(tmp_path).names() == ("v",)


def test_hidden_files_do_not_make_a_folder_one_of_other_features(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "._good.npy").write_bytes(b"\0\5\x16\7")
    assert run("features", folder, tmp_path / "out") == 0


def test_annotation_folders_that_macos_has_packed_read_as_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in ("th/annotation", "th/__MACOSX/annotation", "th/.AppleDouble"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "th/annotation/Billiards_test.txt").write_text("video_test_0000001  1.0 2.0\n")
    for name in (
        "__MACOSX/annotation/._Billiards_test.txt",
        "annotation/._Billiards_test.txt",
        ".AppleDouble/B_test.txt",
    ):
        (tmp_path / "th" / name).write_bytes(b"\0\5\x16\7\xff\xff")
    assert main(["annotations", "check", str(tmp_path / "th")]) == 0
    assert "1 videos, 1 segments of 1 classes" in capsys.readouterr().out


@pytest.mark.parametrize("file", ["EPIC_100_train.csv", "anet_anno_train.json", "Charades_v1_train.csv"])
def test_other_forms_pass_over_hidden_files_too(tmp_path: Path, file: str) -> None:
    contents = {
        "EPIC_100_train.csv": "video_id,start_timestamp,stop_timestamp,verb_class,noun_class\n"
        "P01_01,00:00:01.00,00:00:02.00,1,2\n",
        "EPIC_100_video_info.csv": "video_id,duration\nP01_01,20\n",
        "Charades_v1_train.csv": "id,actions,length\nABCDE,c092 1.0 2.0,20.0\n",
    }
    if file.endswith(".json"):
        row = {"duration_second": 9.0, "annotations": [{"segment": [1.0, 2.0], "label": "a"}]}
        write_json({"v": row}, tmp_path / file)
    else:
        for name in (file, "EPIC_100_video_info.csv"):
            (tmp_path / name).write_text(contents[name])
    (tmp_path / "__MACOSX").mkdir()
    shutil.copy(tmp_path / file, tmp_path / "__MACOSX" / file)  # else each row is there twice
    form = {"EPIC": "epic-kitchens-verb", "anet": "mmaction2", "Char": "charades"}[file[:4]]
    out = tmp_path / "out.json"
    assert main(["annotations", "convert", str(tmp_path), str(out), "--from", form]) == 0
    assert [len(video["annotations"]) for video in read_json(out)["database"].values()] == [1]
