"""Pre-trains the demo's tiny VideoMAE backbone: names the action of trimmed playroom clips.

A small version of the published recipe: VideoMAE's Kinetics models learn to classify trimmed clips before AdaTAD
freezes them; this one learns to classify 16-frame playroom clips. Its scenes have seeds that the demo never uses (their
first number differs). Clips are shown in both playing directions, with the label of that direction, so that neither the
forward nor the reverse detector has an advantage. The classes are those of playroom, the reverses of the irreversible
ones, and "nothing happens".

So small a transformer learns this from random weights for two reasons: creatures are brighter than the room (with equal
brightness, the loss stays at chance), and channels start as the difference of a tubelet's two frames.

    python benchmarks/pretrain_playroom.py --out bitad/config/presets/playroom_backbone.safetensors

Every 250 steps OUT.state is written; an interrupted call continues from it, with the same result.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from bitad.config.names import SIZES
from bitad.demo.playroom import CLASSES, REVERSED, render, sample_scene
from bitad.models.backbone import PIXEL_MEAN, PIXEL_STD, normalised
from bitad.models.vit import VisionTransformer
from bitad.runtime.environment import set_up_process
from bitad.runtime.files import atomic_write
from bitad.weights.files import write_safetensors

IDLE = "idle"
NAMES = (*CLASSES, *(f"{name} reversed" for name in CLASSES if REVERSED[name] is None), IDLE)
PRETRAINING_SEED = 7_000_000  # the demo's scenes start with other numbers
SAVE_EVERY = 250  # steps
MEAN, STD = torch.tensor(PIXEL_MEAN), torch.tensor(PIXEL_STD)
IMAGE_SIZE, CLIP_FRAMES, FRAMES_PER_SECOND = 64, 16, 8


def sample_clip(seed: tuple[int, ...]) -> tuple[np.ndarray, int]:
    """One clip, uint8 ``[16, 64, 64, 3]``, its class: an action somewhere in the middle, or nothing."""
    rng = np.random.default_rng((*seed, 2))
    scene = sample_scene((PRETRAINING_SEED, *seed), 9.0)
    length = CLIP_FRAMES / FRAMES_PER_SECOND
    if rng.random() < 0.08 or not scene.actions:
        resting = tuple(replace(creature, actions=()) for creature in scene.creatures)
        scene, name, start = replace(scene, creatures=resting), IDLE, 1.0
    else:
        action = scene.actions[rng.integers(len(scene.actions))]
        middle = (action.start_s + action.end_s) / 2 + rng.uniform(-0.3, 0.3) * (action.end_s - action.start_s)
        name, start = action.label, middle - length / 2
    times = (start + np.arange(CLIP_FRAMES) / FRAMES_PER_SECOND).astype(np.float32)
    clip = render(scene, times, IMAGE_SIZE)
    if rng.random() < 0.5:
        clip = clip[::-1]
        if name != IDLE:
            name = REVERSED[name] or f"{name} reversed"
    if rng.random() < 0.5:
        clip = clip[:, :, ::-1]
    return np.ascontiguousarray(clip), NAMES.index(name)


class Clips(IterableDataset):
    """Endless clips of a pre-training's seed, from clip ``begin``; worker w of n draws every n-th one."""

    def __init__(self, seed: int, begin: int = 0) -> None:
        self.first = 0 if seed == 0 else 1 + seed  # the clips of 1 are held out
        self.begin = begin

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        worker = get_worker_info()
        index, step = (worker.id, worker.num_workers) if worker else (0, 1)
        index += self.begin
        while True:
            clip, label = sample_clip((self.first, index))
            yield torch.from_numpy(clip), label
            index += step


class Classifier(nn.Module):
    """The backbone, mean over all tokens, layer norm, one linear map: VideoMAE's fine-tuning head."""

    def __init__(self) -> None:
        super().__init__()
        size = SIZES["tiny"]
        self.backbone = VisionTransformer(
            dim=size.dim, depth=size.depth, heads=size.heads, mlp_dim=size.mlp_dim, image_size=IMAGE_SIZE
        )
        # Half of the channels start as differences of a tubelet's two frames, scaled up to matter.
        with torch.no_grad():
            weight = self.backbone.patch_embed.weight
            weight[::2, :, 1] = -weight[::2, :, 0]
            weight[::2] *= 4
        self.fc_norm = nn.LayerNorm(size.dim, eps=1e-6)
        self.head = nn.Linear(size.dim, len(NAMES))

    def forward(self, frames: Tensor) -> Tensor:
        """Frames, uint8 ``[B, T, H, W, 3]`` -> class logits ``[B, K]``."""
        clips = frames.permute(0, 4, 1, 2, 3)
        inputs = self.backbone.begin(clips, 1, partial(normalised, mean=MEAN, std=STD))
        return self.head(self.fc_norm(self.backbone.encode(*inputs).mean((1, 2, 3))))


def accuracy(model: Classifier, count: int) -> float:
    """Share of ``count`` held-out clips that are classified correctly."""
    model.eval()
    right = 0
    with torch.inference_mode():
        for begin in range(0, count, 100):
            clips = [sample_clip((1, begin + i)) for i in range(100)]
            logits = model(torch.from_numpy(np.stack([clip for clip, _ in clips])))
            right += int((logits.argmax(1) == torch.tensor([label for _, label in clips])).sum())
    model.train()
    return right / count


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="file to write (safetensors)")
    parser.add_argument("--clips", type=int, default=96_000, help="training clips, each used once (96000)")
    parser.add_argument(
        "--horizon", type=int, default=128_000, help="clips over which the learning rate falls (128000)"
    )
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument(
        "--seed", type=int, default=0, help="of weights and clips (0: the encoder that is shipped)"
    )
    arguments = parser.parse_args(given)
    torch.manual_seed(arguments.seed)
    set_up_process(threads=1)
    model = Classifier()
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ]
    )
    steps, horizon = arguments.clips // arguments.batch, arguments.horizon // arguments.batch
    state = arguments.out.with_name(f"{arguments.out.name}.state")
    settings = {name: value for name, value in vars(arguments).items() if name != "out"}
    first, smooth, right = 0, math.log(len(NAMES)), 0.0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        if saved["settings"] != settings:
            parser.error(f"{state} is of another call ({saved['settings']}); delete it, or give its options")
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first, smooth, right = saved["step"], saved["smooth"], saved["right"]
    own_clips = Clips(arguments.seed, first * arguments.batch)
    clips = iter(DataLoader(own_clips, arguments.batch, num_workers=1, prefetch_factor=4))
    began = time.process_time()
    for step in range(first, steps):
        for group in optimizer.param_groups:
            cosine = (1 + math.cos(math.pi * step / horizon)) / 2
            group["lr"] = arguments.lr * min(step / 300, 1) * (0.02 + 0.98 * cosine)
        frames, labels = next(clips)
        logits = model(frames)
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        smooth += 0.02 * (loss.item() - smooth)
        right += 0.02 * ((logits.argmax(1) == labels).float().mean().item() - right)
        if (step + 1) % 100 == 0:
            minutes = (time.process_time() - began) / 60
            print(
                f"step {step + 1} of {steps}  {minutes:.1f} CPU min  loss {smooth:.3f}  correct {right:.1%}",
                flush=True,
            )
        if (step + 1) % SAVE_EVERY == 0:
            content = {"settings": settings, "step": step + 1, "smooth": smooth, "right": right}
            with atomic_write(state) as partial:
                torch.save(content | {"model": model.state_dict(), "optimizer": optimizer.state_dict()}, partial)
    save(model.backbone, arguments.out)
    state.unlink(missing_ok=True)
    share_right = accuracy(model, 2000)
    print(
        f"{steps * arguments.batch} clips; {share_right:.1%} of 2,000 held-out clips correct, {len(NAMES)} classes"
    )


def save(model: nn.Module, path: Path) -> None:
    """Writes the weights as safetensors."""
    write_safetensors(model.state_dict(), path)


if __name__ == "__main__":
    main()
