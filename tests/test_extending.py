"""docs/extending.md: its blocks run, and what they add works from the command line."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import config_of, feature_data
from runs import both_baselines

from bitad.cli import main
from bitad.data.formats import annotations as formats
from bitad.models import build
from bitad.models.heads import Points, Prediction
from bitad.weights.checkpoint import load_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
# Of each extension in the order of the page: the file, the row and the test.
BLOCKS = re.findall(r"^```python( row| test|)\n(.*?)^```$", PAGE, re.M | re.S)


def predictions(points: int) -> tuple[Prediction, Prediction]:
    generator = torch.Generator().manual_seed(0)
    where = Points.of_levels([points], [1], [(0, 1)])
    own, other = (
        Prediction(
            torch.randn(2, points, 3, generator=generator),
            torch.rand(2, points, 2, generator=generator),
            torch.ones(2, points, dtype=torch.bool),
            where,
        )
        for _ in range(2)
    )
    return own, other


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that adds one of the page's extensions; its names, for the test."""

    def add(number: int, module: str, table: dict[str, Any], names: dict[str, Any]) -> dict[str, Any]:
        file = types.ModuleType(module)
        monkeypatch.setitem(sys.modules, module, file)
        exec(BLOCKS[3 * number][1], file.__dict__)
        names = {**names, **file.__dict__}
        before = set(table)
        exec(BLOCKS[3 * number + 1][1], names)
        (new,) = set(table) - before
        monkeypatch.setitem(table, new, table.pop(new))  # and afterwards it is gone
        exec(BLOCKS[3 * number + 2][1], names)
        return names

    return add


def test_every_block_of_the_page_is_of_a_known_sort() -> None:
    assert [sort.strip() for sort, _ in BLOCKS] == ["", "row", "test"] * 2


def test_a_fusion_is_a_file_and_a_row(added: Any, tmp_path: Path) -> None:
    added(0, "bitad.models.gated", build.FUSIONS, {"FUSIONS": build.FUSIONS, "predictions": predictions})
    path = feature_data(tmp_path / "data")
    overrides = (
        "experiment=3-3",
        "pair.fusion=gated",
        *both_baselines(path),
        f"output={tmp_path}",
        "training.epochs=1",
    )
    assert main(["train", str(path), *overrides, "--device", "cpu"]) == 0
    run = config_of(path, *overrides).run_directory
    assert "gated-fusion" in run.name
    checkpoint = load_checkpoint(run)
    gate = checkpoint.model["first.fusion.gate"]
    assert gate.abs().max() > 0  # it was trained from 0 on
    assert main(["test", str(run), "--out", str(tmp_path / "test"), "--device", "cpu"]) == 0
    assert main(["plan", str(path), *overrides]) == 0


def test_an_unknown_fusion_is_refused_with_the_known_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = feature_data(tmp_path / "data")
    overrides = ("experiment=3-3", "pair.fusion=gatde", *both_baselines(path), f"output={tmp_path / 'runs'}")
    assert main(["train", str(path), *overrides, "--device", "cpu"]) == 1
    assert "pair.fusion=gatde: no such fusion; use one of columns, convolution, mean" in capsys.readouterr().err
    assert main(["train", str(path), "pair.fusion=mean", "--device", "cpu"]) == 1
    assert "pair.fusion=mean has no effect in experiment baseline" in capsys.readouterr().err


def test_a_format_of_annotations_is_a_file_and_a_row(
    added: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {
        name: getattr(formats, name)
        for name in ("FORMATS", "AnnotationFormat", "recognise", "read_annotation_files")
    }
    added(1, "bitad.data.formats.daily", formats.FORMATS, names | {"tmp_path": tmp_path})
    assert main(["annotations", "check", str(tmp_path / "daily_train.csv")]) == 0
    assert "1 videos, 2 segments of 2 classes" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["annotations", "check", "--help"])
    assert "DailyActions' daily_{train,test}.csv" in capsys.readouterr().out
