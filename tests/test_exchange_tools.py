"""The annotation tools themselves open the files that are written for them, and what they save is read.

They need an environment of their own: ``BITAD_TOOLS`` names its Python, in which ``pip install fiftyone
label-studio-sdk pympi-ling`` was run. FiftyOne's database is not started: its importer and exporter do without.
"""

from __future__ import annotations

import json
import os
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import found, truth

from bitad.data.formats.annotations import read_annotation_files, write_annotation_files
from bitad.data.formats.writing import WriteOptions
from bitad.data.frame_clocks import FrameClocks

pytestmark = pytest.mark.slow

CLASSES = ("run", "high jump & more")
ROWS = [(1.0, 2.5, "run"), (2.0, 4.0, "high jump & more"), (6.0, 6.1, "run")]
CLOCKS = FrameClocks(frame_rate=10)


def in_tool(module: str, script: str, folder: Path, *arguments: object) -> Any:
    """What a script prints as JSON in the environment of the tools; skips where it or the module is missing.

    It runs in a folder, as tools may leave files where they run.
    """
    python = os.environ.get("BITAD_TOOLS")
    if python is None:
        pytest.skip("BITAD_TOOLS does not name the Python of an environment with the annotation tools")
    env = {**os.environ, "PYTHONPATH": "", "FIFTYONE_DISABLE_SERVICES": "1", "FIFTYONE_DO_NOT_TRACK": "1"}
    find = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    if subprocess.run([python, "-c", find], check=False).returncode:
        pytest.skip(f"{module} is not installed in the environment of BITAD_TOOLS")
    command = [python, "-c", textwrap.dedent(script), *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=folder)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def test_label_studio_accepts_configuration_predictions_and_annotations(tmp_path: Path) -> None:
    rows = {"a": [(*row, 0.5) for row in ROWS], "b": []}
    predicted = found(rows, CLASSES, duration_s=9.0).to_annotations()
    write_annotation_files(predicted, tmp_path / "found.json", "label-studio", WriteOptions(CLOCKS))
    write_annotation_files(
        truth({"a": ROWS}, CLASSES), tmp_path / "truth.json", "label-studio", WriteOptions(CLOCKS)
    )
    script = """
        import json, sys
        from label_studio_sdk.label_interface import LabelInterface

        folder = sys.argv[1]
        interface = LabelInterface(open(f"{folder}/found.xml").read())
        interface.validate()
        tasks = json.load(open(f"{folder}/found.json"))
        errors = [interface.validate_prediction(task["predictions"][0], return_errors=True) for task in tasks]
        (task,) = json.load(open(f"{folder}/truth.json"))
        wrong = json.loads(json.dumps(task["annotations"][0]).replace("high jump", "other"))
        labels = sorted(interface.get_control("action").labels)
        print(json.dumps([errors, interface.validate_annotation(task["annotations"][0]),
                          interface.validate_annotation(wrong), labels]))
    """
    expected = [[[], []], True, False, sorted(CLASSES)]
    assert in_tool("label_studio_sdk", script, tmp_path, tmp_path) == expected


def test_pympi_opens_our_elan_files_and_we_open_its(tmp_path: Path) -> None:
    (path,) = write_annotation_files(truth({"a": ROWS}, CLASSES), tmp_path, "elan", WriteOptions(CLOCKS))
    script = """
        import json, sys
        from pympi import Eaf

        read = Eaf(sys.argv[1])
        tiers = {name: sorted(read.get_annotation_data_for_tier(name)) for name in read.get_tier_names()}
        vocabulary = [values[0][0] for values, _ in read.controlled_vocabularies["actions"][1].values()]
        own = Eaf()
        own.add_tier("hands")
        own.add_annotation("hands", 250, 1500, "run")
        own.to_file(sys.argv[2])
        print(json.dumps([tiers, vocabulary]))
    """
    tiers, vocabulary = in_tool("pympi", script, tmp_path, path, tmp_path / "own.eaf")
    assert tiers == {
        "actions": [[1000, 2500, "run"], [6000, 6100, "run"]],
        "actions 2": [[2000, 4000, "high jump & more"]],
    }
    assert sorted(vocabulary) == sorted(CLASSES)
    video = read_annotation_files(tmp_path / "own.eaf").annotations.videos["own"]
    assert (video.labels, video.segments.tolist()) == (("run",), [[0.25, 1.5]])


def test_fiftyone_imports_our_folder_and_we_read_its_export(tmp_path: Path) -> None:
    detections = found({"a.v2": [(*row, 0.5) for row in ROWS]}, CLASSES).to_annotations()
    options = WriteOptions(CLOCKS, media=f"{tmp_path}/")
    write_annotation_files(detections, tmp_path / "ours", "fiftyone", options)
    (tmp_path / "clip.mp4").touch()
    script = """
        import json, sys
        import fiftyone.core.labels as fol
        import fiftyone.utils.data as foud

        ours, theirs, clip = sys.argv[1:]
        importer = foud.FiftyOneTemporalDetectionDatasetImporter(dataset_dir=ours, data_path="data.json")
        with importer:
            samples = [(path, [(d.label, list(d.support), d.confidence) for d in label.detections])
                       for path, _, label, _ in importer]
        exporter = foud.FiftyOneTemporalDetectionDatasetExporter(
            export_dir=theirs, export_media="manifest", classes=["jump", "run"])
        with exporter:
            detection = fol.TemporalDetection(label="run", support=[3, 7], confidence=0.5)
            exporter.export_sample(clip, fol.TemporalDetections(detections=[detection]), None)
        print(json.dumps(samples))
    """
    samples = in_tool("fiftyone", script, tmp_path, tmp_path / "ours", tmp_path / "theirs", tmp_path / "clip.mp4")
    assert samples == [
        [
            f"{tmp_path}/a.v2",
            [["run", [11, 25], 0.5], ["high jump & more", [21, 40], 0.5], ["run", [61, 61], 0.5]],
        ]
    ]
    video = read_annotation_files(tmp_path / "theirs", frame_clocks=CLOCKS).annotations.videos["clip"]
    assert video.labels == ("run",)
    np.testing.assert_allclose(video.segments, [[0.2, 0.7]])
