"""Which trainings a demo consists of."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitad.config.names import EXPERIMENTS
from bitad.demo import ABLATIONS, DEFAULT, FULL, SMOKE, Job, Scale, Trainings

SCALES = pytest.mark.parametrize("scale", [DEFAULT, FULL, SMOKE], ids=lambda scale: scale.name)


def planned(scale: Scale, seed: int = 4) -> list[Job]:
    return Trainings(Path("out"), scale, seed).jobs()


@SCALES
def test_every_run_comes_once_and_after_those_it_starts_from(scale: Scale) -> None:
    made: set[Path] = set()
    for job in planned(scale):
        assert job.directory not in made
        assert job.needs() <= made
        made.add(job.directory)


@SCALES
def test_a_pair_starts_from_the_baselines_of_its_own_seed(scale: Scale) -> None:
    for job in planned(scale):
        config = job.config
        if config.design.starts_from == "baselines" and config.views == ("forward", "reverse"):
            assert config.init.forward == Path(f"out/runs/playroom-forward-seed{config.seed}")
            assert config.init.reverse == Path(f"out/runs/playroom-reverse-seed{config.seed}")


def test_a_control_is_of_two_different_forward_networks_each_used_as_often() -> None:
    controls = [
        job.config for job in planned(FULL) if job.config.design.networks == 2 and job.config.views[1] == "forward"
    ]
    pairs = {(c.init.forward, c.init.reverse) for c in controls}
    assert all(first != second and "forward" in str(second) for first, second in pairs)
    assert {first for first, _ in pairs} == {second for _, second in pairs}
    assert len(pairs) == FULL.seeds


def test_the_full_demo_has_every_experiment_with_three_seeds_and_ablations_with_one() -> None:
    seeds: dict[str, set[int]] = {}
    for job in planned(FULL):
        seeds.setdefault(job.config.variant, set()).add(job.config.seed)
    for variant, found in seeds.items():
        ablation = "naive" in variant or "random" in variant
        assert found == ({4} if ablation else {4, 5, 6}), variant
    assert seeds.keys() >= {"forward", "reverse", *EXPERIMENTS} - {"baseline", "1s"}
    assert sum("naive" in variant or "random" in variant for variant in seeds) == 3 * len(ABLATIONS)


def test_the_default_demo_is_the_beginning_of_the_full_one() -> None:
    assert {job.directory for job in planned(DEFAULT)} < {job.directory for job in planned(FULL)}
