"""Each process suppresses the detections of its own videos, and all get what one process finds."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from processes import ranks as processes_of

PROGRAM = """
import json, sys
import numpy as np
from bitad.config.schema import NmsConfig
from bitad.data.detections import write_detections
from bitad.inference.detect import _bring_together, _of_all
from bitad.inference.merge import merge
from bitad.inference.postprocess import Candidates, Stitcher
from bitad.runtime.distributed import process_group
from bitad.timeline import Grid

method, folder = sys.argv[1:]
settings = NmsConfig(voting_threshold=0.0)
videos = ["d", "none", "a", "c", "b"]
windows = [(video, number) for video in ("c", "a", "d", "b") for number in range(4)]
with process_group("cpu") as ranks:
    stitchers = [Stitcher(settings) for _ in range(2)]
    share = range(len(windows) * ranks.rank // ranks.world, len(windows) * (ranks.rank + 1) // ranks.world)
    if ranks.world == 3:
        share = ranks.share(len(windows))  # windows of every video in every process
    for i in share:
        rng = np.random.default_rng(i)
        for stitcher in stitchers:
            segments = np.sort(rng.uniform(0, 64, (40, 2)), axis=1)
            seen = Candidates(segments, rng.random(40).round(1), rng.integers(0, 2, 40))
            video, number = windows[i]
            grid = Grid(fps=30, stride_frames=4, first_frame=number * 100, steps=64)
            stitcher.add(video, seen, grid, 25.0)
    owners = _bring_together(stitchers, ranks)
    own = [name for name in videos if owners.get(name, 0) == ranks.rank]
    print(json.dumps({"own": own, "stitched": sorted(stitchers[0].windows)}))
    found = [stitcher.detections(["x", "y"], own, details={"run": 1}) for stitcher in stitchers]
    found.append(merge(*found, method=method, settings=settings))
    for name, parts in zip(("first", "second", "merged"), zip(*ranks.gather(found))):
        write_detections(_of_all(parts, videos), f"{folder}/{name}.{ranks.rank}.json")
"""


@pytest.mark.parametrize("method", ["soft-nms", "wsf"])
def test_several_processes_find_what_one_finds_to_the_bit(tmp_path: Path, method: str) -> None:
    digests: dict[str, set[str]] = {}
    for world in (1, 2, 3):
        folder = tmp_path / str(world)
        folder.mkdir()
        with processes_of(world, method, folder, program=PROGRAM) as members:
            outputs = [member.communicate(timeout=100) for member in members]
            assert [member.returncode for member in members] == [0] * world, outputs
        said = [json.loads(out) for out, _ in outputs]
        owned = [name for one in said for name in one["own"]]
        assert sorted(owned) == ["a", "b", "c", "d", "none"]
        for one in said:
            assert set(one["stitched"]) == set(one["own"]) - {"none"}
        assert world != 2 or all(len(one["own"]) >= 2 for one in said)
        for name in ("first", "second", "merged"):
            contents = [(folder / f"{name}.{rank}.json").read_bytes() for rank in range(world)]
            digests.setdefault(name, set()).update(hashlib.sha256(content).hexdigest() for content in contents)
    assert {name: len(found) for name, found in digests.items()} == dict.fromkeys(digests, 1)
