"""Pre-trains the demo's tiny VideoMAE backbone: names the action of trimmed playroom clips.

The published recipe in small: as VideoMAE's Kinetics models are trained to name the action of a trimmed clip before
AdaTAD freezes them, this one learns to name the action of 16-frame playroom clips. Its scenes come from seeds that
the demo never draws (their first number differs). Clips are shown in both playing directions, each under the name
that it has in that direction, so that neither the forward nor the reverse detector has a head start; the classes
are those of playroom, the reverses of the irreversible ones, and "nothing happens".

A transformer this small finds no motion in a clip's label alone for a long while (the loss stays near chance), so each
token also learns to say how the creature under it moves: four numbers that the renderer knows. The two heads are
dropped afterwards.

    python benchmarks/pretrain_playroom.py --out bitad/presets/playroom_backbone.safetensors --minutes 90
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from bitad.data.playroom import CLASSES, REVERSED, Scene, render, sample_scene, states
from bitad.models.sizes import SIZES
from bitad.models.videomae import VisionTransformer

IDLE = "idle"
NAMES = (*CLASSES, *(f"{name} reversed" for name in CLASSES if REVERSED[name] is None), IDLE)
PRETRAINING_SEED = 7_000_000  # the demo's scenes start with other numbers
IMAGE_SIZE, CLIP_FRAMES, FRAMES_PER_SECOND = 64, 16, 8


def sample_clip(seed: tuple[int, ...]) -> tuple[np.ndarray, int, np.ndarray]:
    """One clip, uint8 ``[16, 64, 64, 3]``, its class (an action somewhere in the middle, or nothing), its motion."""
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
    clip, motion = render(scene, times, IMAGE_SIZE), token_motion(scene, times)
    if rng.random() < 0.5:
        clip, motion = clip[::-1], -motion[::-1]
        if name != IDLE:
            name = REVERSED[name] or f"{name} reversed"
    if rng.random() < 0.5:
        clip, motion = clip[:, :, ::-1], motion[:, :, ::-1] * MIRRORED
    return np.ascontiguousarray(clip), NAMES.index(name), np.ascontiguousarray(motion)


MOTION_SCALE = np.array([120, 120, 500, 36], np.float32)  # to about unit size: x, y, radius, mouth from frame to frame
MIRRORED = np.array([-1, 1, 1, 1], np.float32)


def token_motion(scene: Scene, times: np.ndarray) -> np.ndarray:
    """How the creature under each token moves from one frame of its tubelet to the next, float32 ``[8, 4, 4, 4]``."""
    side = IMAGE_SIZE // 16
    centre = (np.arange(side, dtype=np.float32) + 0.5) / side
    motion = np.zeros((len(times) // 2, side, side, 4), np.float32)
    for creature in scene.creatures:
        state = states(creature, times)
        course = np.stack([state[key] for key in ("x", "y", "radius", "mouth")], -1)
        speed = (course[1::2] - course[::2]) * MOTION_SCALE  # [8, 4]
        x, y, radius, _ = course.reshape(-1, 2, 4).mean(1).T[..., None, None]
        near = np.hypot(centre[None, None, :] - x, centre[None, :, None] - y) < radius + 0.06
        motion = np.where(near[..., None], speed[:, None, None, :], motion)
    return motion


class Clips(IterableDataset):
    """Endless clips; worker w of n draws every n-th seed."""

    def __init__(self, first: int) -> None:
        self.first = first

    def __iter__(self) -> Iterator[tuple[Tensor, int, Tensor]]:
        worker = get_worker_info()
        index, step = (worker.id, worker.num_workers) if worker else (0, 1)
        while True:
            clip, label, motion = sample_clip((0, self.first + index))
            yield torch.from_numpy(clip), label, torch.from_numpy(motion)
            index += step


class Classifier(nn.Module):
    """The backbone, mean over all tokens, layer norm, one linear map: VideoMAE's fine-tuning head."""

    def __init__(self) -> None:
        super().__init__()
        size = SIZES["tiny"]
        self.backbone = VisionTransformer(
            dim=size.dim, depth=size.depth, heads=size.heads, mlp_dim=size.mlp_dim, image_size=IMAGE_SIZE
        )
        # Half of the channels start as differences of a tubelet's two frames, large enough to be heard beside the rest.
        with torch.no_grad():
            weight = self.backbone.patch_embed.weight
            weight[::2, :, 1] = -weight[::2, :, 0]
            weight[::2] *= 4
        self.fc_norm = nn.LayerNorm(size.dim, eps=1e-6)
        self.head = nn.Linear(size.dim, len(NAMES))
        self.motion_head = nn.Sequential(nn.LayerNorm(size.dim, eps=1e-6), nn.Linear(size.dim, 4))

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Frames, uint8 ``[B, T, H, W, 3]`` -> class logits ``[B, K]`` and motion ``[B, t, h, w, 4]``."""
        mean = torch.tensor([123.675, 116.28, 103.53])
        std = torch.tensor([58.395, 57.12, 57.375])
        clips = ((frames - mean) / std).permute(0, 4, 1, 2, 3)
        tokens = self.backbone(clips, 1)
        return self.head(self.fc_norm(tokens.mean((1, 2, 3)))), self.motion_head(tokens)


def accuracy(model: Classifier, count: int) -> float:
    """Share of ``count`` held-out clips named rightly."""
    model.eval()
    right = 0
    with torch.inference_mode():
        for begin in range(0, count, 100):
            clips = [sample_clip((1, begin + i)) for i in range(100)]
            logits, _ = model(torch.from_numpy(np.stack([clip for clip, _, _ in clips])))
            right += int((logits.argmax(1) == torch.tensor([label for _, label, _ in clips])).sum())
    model.train()
    return right / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="file to write (safetensors)")
    parser.add_argument("--minutes", type=float, default=90, help="training time; the learning rate follows it")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--start", type=Path, help="go on from this file")
    parser.add_argument("--first", type=int, default=0, help="number of the first clip (to go on with fresh ones)")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = Classifier()
    if arguments.start:
        model.load_state_dict(load_file(arguments.start))
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}])
    clips = iter(DataLoader(Clips(arguments.first), arguments.batch, num_workers=1, prefetch_factor=4))
    began, step, smooth, right, off = time.monotonic(), 0, math.log(len(NAMES)), 0.0, 0.25
    while (share := (time.monotonic() - began) / 60 / arguments.minutes) < 1:
        for group in optimizer.param_groups:
            group["lr"] = arguments.lr * min(step / 300, 1) * (0.02 + 0.98 * (1 + math.cos(math.pi * share)) / 2)
        frames, labels, motion = next(clips)
        logits, moved = model(frames)
        loss = F.cross_entropy(logits, labels)
        motion_loss = F.smooth_l1_loss(moved, motion)
        optimizer.zero_grad()
        (loss + 5 * motion_loss).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        smooth += 0.02 * (loss.item() - smooth)
        off += 0.02 * (motion_loss.item() - off)
        right += 0.02 * ((logits.argmax(1) == labels).float().mean().item() - right)
        if step % 100 == 0:
            print(
                f"{share:6.1%}  step {step}  loss {smooth:.3f}  motion {off:.4f}  training accuracy {right:.1%}",
                flush=True,
            )
        if step % 1000 == 0:
            save(model, arguments.out)
    save(model, arguments.out)
    share_right = accuracy(model, 2000)
    print(f"{step * arguments.batch} clips; {share_right:.1%} of 2,000 held-out clips right, {len(NAMES)} classes")


def save(model: Classifier, path: Path) -> None:
    """Writes the weights, the classifier's included, as safetensors."""
    temporary = path.with_name(path.name + ".tmp")
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, temporary)
    temporary.replace(path)


if __name__ == "__main__":
    main()
