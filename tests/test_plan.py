"""What a training is said to cost, beside what it costs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from weakref import WeakSet

import pytest
import torch
from builders import CLASSES, config_of, feature_data
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from bitad.cli import main
from bitad.config.loading import load_config, presets
from bitad.config.names import EXPERIMENTS
from bitad.config.schema import Config
from bitad.models.backbone import VideoBackbone
from bitad.models.build import build_network, hold_frozen
from bitad.models.network import Detector, Pair
from bitad.reports.plan import TrainingPlan, plan_training
from bitad.runtime.distributed import Ranks
from bitad.training.losses import DetectionLoss, assign
from bitad.training.step_cost import POLICIES, PRECISIONS, OpCounter, policies, step_cost, storage_bytes
from bitad.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

# Small, and yet with everything: three blocks, six clips, adapters behind two of them, global and local attention.
SMALL = (
    "data.annotations=none.json",
    "data.classes=null",
    "window.steps=96",
    "model.levels=2",
    "model.channels=32",
    "model.stem_blocks=1",
    "model.attention_window=[null, 5]",
    "model.backbone.size={dim: 48, depth: 3, heads: 3, mlp_dim: 96}",
    "model.backbone.weights=null",
    "model.backbone.pixels=48",
    "model.backbone.first_adapter=1",
)
K = len(CLASSES)
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *shapes, **_: (
        sdpa_backward_flop_count(*shapes[:4])
    ),
}


def small(*overrides: str, experiment: str = "baseline") -> Config:
    starts: tuple[str, ...] = ()
    if EXPERIMENTS[experiment].starts_from == "baselines":
        starts = ("init.forward=NONE", "init.reverse=NONE")
    if EXPERIMENTS[experiment].teacher:
        starts = ("init.teacher=NONE",)
    return load_config("thumos14/videomae-s", [f"experiment={experiment}", *starts, *SMALL, *overrides])


@cache
def small_plan() -> TrainingPlan:
    return plan_training(small())


@pytest.fixture
def one_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are simulated in one way only, which is quicker."""
    monkeypatch.setattr("bitad.training.step_cost.POLICIES", ["none"])
    monkeypatch.setattr("bitad.reports.plan.PRECISIONS", ["fp32"])


class RealStep:
    """A training step of a single network with weights and pictures."""

    def __init__(self, config: Config, policy: str) -> None:
        backbone = config.model.backbone
        assert backbone is not None
        torch.manual_seed(0)
        network = build_network(config, K).train()
        assert isinstance(network, Detector)
        assert isinstance(network.backbone, VideoBackbone)
        network.backbone.vit.checkpointing = policy
        shape = (config.training.batch, config.window.steps, backbone.pixels, backbone.pixels, 3)
        self.frames = torch.randint(0, 256, shape, dtype=torch.uint8)
        self.mask = torch.ones(shape[:2], dtype=torch.bool)
        self.network, self.loss = network, DetectionLoss()

    def forward(self, autocast: bool = False) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            prediction = self.network.predict(self.frames, self.mask)
        nothing = [torch.zeros(0, 2)] * len(self.frames), [torch.zeros(0, dtype=torch.int64)] * len(self.frames)
        return self.loss(prediction, assign(prediction.points, *nothing, K)).total

    def saved_bytes(self) -> int:
        """Of what autograd holds between a forward and a backward pass: the exact measure of activations."""
        held: WeakSet[Saved] = WeakSet()

        def hold(tensor: Tensor) -> Saved:
            held.add(saved := Saved(tensor))
            return saved

        with torch.autograd.graph.saved_tensors_hooks(hold, lambda saved: saved.tensor):
            total = self.forward()
        given = storages([*self.network.parameters(), *self.network.buffers(), self.frames, self.mask])
        count = storage_bytes(saved.tensor for saved in held if not storages([saved.tensor]) & given)
        total.backward()
        return count


class Saved:
    """A tensor in autograd's hands."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def storages(tensors: Iterable[Tensor]) -> set[int]:
    return {tensor.untyped_storage()._cdata for tensor in tensors}


@pytest.mark.parametrize("policy", POLICIES)
def test_operations_are_those_that_pytorch_counts_on_the_real_network(policy: str) -> None:
    config = small("training.augmentation.colour=0")
    cost = step_cost(config, K, checkpointing=policy, precision="fp32", device="cpu")
    step = RealStep(config, policy)
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        total = step.forward()
        assert cost.forward_flops == counter.get_total_flops()
        total.backward()
    assert cost.flops == counter.get_total_flops()
    with (
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):  # matrix products, which it all knows
        step.forward()
    assert cost.forward_flops == counter.get_total_flops()


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("policy", ["none", "blocks"])  # what `selective` keeps, it keeps beside autograd
def test_activations_are_what_autograd_saves(policy: str, batch: int) -> None:
    config = small(f"training.batch={batch}", "training.augmentation.colour=0")
    cost = step_cost(config, K, checkpointing=policy, precision="fp32", device="cpu")
    exact = RealStep(config, policy).saved_bytes()
    assert exact == pytest.approx(cost.activation_bytes, rel=0.001)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_step_without_content_takes_what_a_real_one_takes(policy: str, precision: str) -> None:
    config = small("training.augmentation.colour=0")
    cost = step_cost(config, K, checkpointing=policy, precision=precision, device="cpu")
    step = RealStep(config, policy)
    hold_frozen(step.network, precision)
    with OpCounter(step.network, step.loss, step.frames, step.mask) as counter:
        total = step.forward(autocast=precision == "bf16")
        activations = counter.bytes
        total.backward()
    gradients = storage_bytes(p.grad for p in step.network.parameters() if p.grad is not None)
    assert counter.bytes - gradients == 4  # of the loss
    assert activations == pytest.approx(cost.activation_bytes, rel=0.01)
    assert counter.peak_bytes + storage_bytes([step.frames, step.mask]) == pytest.approx(cost.peak_bytes, rel=0.01)
    assert counter.flops == cost.flops


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_adapters_beside_the_blocks_cost_what_a_real_step_does(precision: str) -> None:
    inside = small("training.augmentation.colour=0")
    config = small("training.augmentation.colour=0", "model.backbone.adapter_placement=beside")
    assert policies(config) == ["none"]
    cost = step_cost(config, K, checkpointing="none", precision=precision, device="cpu")
    step = RealStep(config, "none")
    with OpCounter(step.network, step.loss, step.frames, step.mask) as counter:
        total = step.forward(autocast=precision == "bf16")
        activations = counter.bytes
        total.backward()
    assert activations == pytest.approx(cost.activation_bytes, rel=0.01)
    assert counter.peak_bytes + storage_bytes([step.frames, step.mask]) == pytest.approx(cost.peak_bytes, rel=0.01)
    assert counter.flops == cost.flops
    before = step_cost(inside, K, checkpointing="none", precision=precision, device="cpu")
    assert cost.flops < 0.9 * before.flops  # the pyramid is most of this small network
    assert cost.activation_bytes < 0.7 * before.activation_bytes


@pytest.mark.usefixtures("one_way")
@pytest.mark.parametrize("overrides", [(), ("model.backbone.adapter_placement=beside",)], ids=["inside", "beside"])
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_can_be_planned_without_the_baselines_it_starts_from(
    experiment: str, overrides: tuple[str, ...]
) -> None:
    plan = plan_training(small(*overrides, experiment=experiment))
    network = build_network(plan.config, plan.classes)
    real = list(network.parameters())
    assert sum(size.all for parts in plan.sizes.values() for size in parts.values()) == sum(
        p.numel() for p in real
    )
    assert plan.trainable == sum(p.numel() for p in real if p.requires_grad)
    assert set(plan.sizes) == set(plan.config.learner_names)
    if isinstance(network, Pair):  # of baselines, whose frozen parts are the same
        if experiment != "1":
            network.second.network.backbone.load_state_dict(network.first.network.backbone.state_dict())
        network.share_frozen()
    # In 2 and 2x all else is frozen too, but two trainings have made it two.
    shared = experiment in ("1-1", "1x", "3-1", "3-2", "3-3")
    if not isinstance(network, Pair) or shared:
        assert plan.weight_bytes == storage_bytes([*network.parameters(), *network.buffers()])


def test_one_graph_of_two_networks_keeps_the_activations_of_both() -> None:
    one, apart, together = (
        step_cost(small(experiment=name), K, checkpointing="none", precision="fp32", device="gpu")
        for name in ("baseline", "1-1", "3-1")
    )
    assert apart.activation_bytes == pytest.approx(one.activation_bytes, rel=0.01)
    assert together.activation_bytes == pytest.approx(2 * one.activation_bytes, rel=0.15)
    assert apart.flops == 2 * one.flops
    assert apart.forward_flops == 2 * one.forward_flops
    assert together.flops > 2 * one.flops


def test_recomputing_takes_less_memory_and_more_operations() -> None:
    costs = {(cost.checkpointing, cost.precision): cost for cost in small_plan().costs}
    for precision in PRECISIONS:
        kept, some, recomputed = (costs[policy, precision] for policy in POLICIES)
        assert recomputed.activation_bytes < some.activation_bytes < 0.8 * kept.activation_bytes
        assert recomputed.peak_bytes <= some.peak_bytes <= kept.peak_bytes  # which is that of its first layer
        assert kept.forward_flops == some.forward_flops == recomputed.forward_flops
        assert kept.forward_flops < kept.flops < some.flops < recomputed.flops
    assert costs["none", "bf16"].activation_bytes < costs["none", "fp32"].activation_bytes


def test_a_plan_says_what_the_trainer_says(tmp_path: Path) -> None:
    path = feature_data(tmp_path / "data")
    config = config_of(path, "training.windows_per_video=5", "training.reference_batch=8")
    trainer = Trainer(config, Ranks(0, 1, torch.device("cpu")))
    plan = plan_training(config)
    assert (plan.steps, plan.windows, plan.videos) == (len(trainer.sampler), 20, 4)
    assert plan.rates == trainer.train_step.learners[0].rates
    assert plan.left_out == ()
    assert plan.trainable == sum(p.numel() for p in trainer.network.parameters() if p.requires_grad)
    assert [cost.checkpointing for cost in plan.costs] == ["none", "none"]
    two = plan_training(config, processes=2)
    assert (two.steps, two.rates.effective_batch) == (5, 4)
    assert two.fixed_bytes == plan.fixed_bytes
    with pytest.raises(ValueError, match="do not fill one batch of 2 on 11 processes"):
        plan_training(config, processes=11)


def test_fitting_says_with_what() -> None:
    plan = small_plan()
    gib = {("none", "fp32"): 40, ("blocks", "fp32"): 20, ("none", "bf16"): 30, ("blocks", "bf16"): 15}
    costs = [
        replace(cost, peak_bytes=gib[cost.checkpointing, cost.precision] * 2**30)
        for cost in plan.costs
        if cost.checkpointing != "selective"
    ]
    plan = replace(plan, costs=tuple(sorted(costs, key=lambda cost: cost.checkpointing != "none")))
    assert [(cost.checkpointing, cost.precision) for cost in plan.costs[:2]] == [
        ("none", "fp32"),
        ("none", "bf16"),
    ]
    assert plan.fit(45 * 2**30).startswith("It fits into 45.0 GiB")
    assert "with training.precision=bf16 it does: 30.0 GiB" in plan.fit(34 * 2**30)
    assert "with model.backbone.checkpointing=blocks it does: 20.0 GiB" in plan.fit(23 * 2**30)
    assert "with model.backbone.checkpointing=blocks and training.precision=bf16 it does" in plan.fit(17 * 2**30)
    assert "with model.backbone.checkpointing=blocks and training.batch=1 it does" in plan.fit(2**30)
    said = plan.fit(1000)
    assert "not even with" in said
    assert "take a smaller network" in said


@pytest.mark.usefixtures("one_way")
def test_without_data_the_rest_is_told_and_what_is_left_out(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command = ["plan", "thumos14/videomae-s", "experiment=3-1", *SMALL, "--processes", "2", "--device-memory", "1"]
    assert main([*command, "--json", str(tmp_path / "plan.json")]) == 0
    out = capsys.readouterr().out
    assert "Experiment 3-1: a layer along the points" in out
    for part in ("backbone", "adapters", "pyramid", "head", "fusion"):
        assert part in out
    assert "for an effective batch of 4 (stated: 0.0001, 0.0002 and 0.001 for 4)" in out
    assert (
        "Left out: steps per epoch and the number of classes, assumed to be 20, which need data.annotations ("
        in out
    )
    assert "It fits into 1.0 GiB" in out
    figures = json.loads((tmp_path / "plan.json").read_text())
    assert figures["steps_per_epoch"] is None
    assert figures["processes"] == 2
    assert [(step["checkpointing"], step["precision"]) for step in figures["steps"]] == [("none", "fp32")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--processes", "0"], "0 processes"),
        (["--device-memory", "-1"], "--device-memory -1"),
        (["--device-memory", "nan"], "--device-memory nan"),
        (["window.steps=33"], "use"),
        (["experiment=4"], "unknown experiment '4'"),
        (["experiment=3-1", "window.layout=whole"], "fuses windows of one length"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "thumos14/videomae-s", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("bitad plan: error: ")
    assert said in err
    assert err.count("\n") == 1
    assert "init." not in err


@pytest.mark.slow
@pytest.mark.usefixtures("one_way")
@pytest.mark.parametrize("preset", presets())
def test_every_preset_can_be_planned(preset: str) -> None:
    plan = plan_training(load_config(preset, ["data.annotations=none.json", "data.classes=null"]))
    assert all(0 < cost.activation_bytes < cost.peak_bytes for cost in plan.costs)
    assert plan.lines()
    assert len(plan.tables()) == 4
