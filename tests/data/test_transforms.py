import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitad.config.schema import AugmentationConfig
from bitad.data.transforms import Crop, apply_crop, centre_crop, random_colour, random_crop, recolour

SEEDS = st.integers(0, 2**31)


@given(SEEDS, st.integers(4, 300), st.integers(4, 300))
@settings(deadline=None)
def test_a_random_crop_lies_inside_the_picture(seed, height, width):
    crop = random_crop(np.random.default_rng(seed), height, width, AugmentationConfig())
    assert crop.top >= 0
    assert crop.left >= 0
    assert crop.height >= 1
    assert crop.width >= 1
    assert crop.top + crop.height <= height
    assert crop.left + crop.width <= width


def test_all_frames_of_a_window_are_cut_alike():
    frame = np.random.default_rng(0).integers(0, 256, (1, 40, 50, 3), np.uint8)
    out = apply_crop(np.repeat(frame, 5, 0), Crop(3, 4, 20, 30, flip=True), 16)
    assert out.shape == (5, 16, 16, 3)
    assert out.dtype == torch.uint8
    assert (out == out[:1]).all()


def test_flipping_twice_changes_nothing_and_once_mirrors_left_and_right():
    frames = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    flipped = apply_crop(frames, Crop(0, 0, 8, 8, flip=True), 8).numpy()
    assert (flipped == frames[:, :, ::-1]).all()
    assert (apply_crop(flipped, Crop(0, 0, 8, 8, flip=True), 8).numpy() == frames).all()


def test_the_centre_crop_is_a_square_in_the_middle():
    assert centre_crop(40, 50) == Crop(0, 5, 40, 40)


def test_no_change_of_colour_changes_nothing():
    frames = torch.randint(0, 256, (2, 70, 4, 4, 3), dtype=torch.uint8)
    matrix = random_colour(
        np.random.default_rng(0), AugmentationConfig(brightness=0, contrast=0, saturation=0, hue=0)
    )
    assert (recolour(frames, torch.from_numpy(matrix).expand(2, 3, 4)) == frames).all()


@given(SEEDS)
@settings(deadline=None, max_examples=25)
def test_colour_is_one_affine_map_for_every_pixel_of_a_window(seed):
    matrix = random_colour(
        np.random.default_rng(seed), AugmentationConfig(brightness=0.3, contrast=0.3, saturation=0.4, hue=0.1)
    )
    frames = np.random.default_rng(seed).integers(0, 256, (1, 3, 4, 5, 3), np.uint8)
    slow = np.empty(frames.shape)
    for index in np.ndindex(frames.shape[:-1]):
        slow[index] = matrix[:, :3] @ frames[index].astype(float) + matrix[:, 3]
    fast = recolour(torch.from_numpy(frames), torch.from_numpy(matrix)[None]).numpy()
    assert np.abs(fast - np.clip(np.round(slow), 0, 255)).max() <= 1  # one step where rounding is a tie


def test_grey_stays_grey_under_hue_and_saturation():
    grey = torch.full((1, 1, 1, 1, 3), 90, dtype=torch.uint8)
    matrix = random_colour(
        np.random.default_rng(1), AugmentationConfig(brightness=0, contrast=0, saturation=0.9, hue=0.5)
    )
    assert recolour(grey, torch.from_numpy(matrix)[None]).flatten().tolist() == pytest.approx([90, 90, 90], abs=1)


def test_colour_does_not_depend_on_the_precision_of_the_network():
    matrix = random_colour(
        np.random.default_rng(2), AugmentationConfig(brightness=0.3, contrast=0.3, saturation=0.4, hue=0.1)
    )
    frames = torch.from_numpy(np.random.default_rng(2).integers(0, 256, (1, 2, 8, 8, 3), np.uint8))
    matrices = torch.from_numpy(matrix)[None]
    with torch.autocast("cpu", torch.bfloat16):
        assert (recolour(frames, matrices) == recolour(frames, matrices.double())).all()


def test_each_window_has_its_own_colour_and_the_frames_given_stay():
    frames = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (2, 70, 32, 33, 3), np.uint8))
    before, rng = frames.clone(), np.random.default_rng(3)
    drawn = [
        random_colour(rng, AugmentationConfig(brightness=0.3, contrast=0.3, saturation=0.4, hue=0.1))
        for _ in frames
    ]
    out = recolour(frames, torch.from_numpy(np.stack(drawn)))
    assert (frames == before).all()
    for pixels, matrix, changed in zip(frames.numpy(), drawn, out.numpy(), strict=True):
        slow = np.clip(np.round(pixels.astype(float) @ matrix[:, :3].T + matrix[:, 3]), 0, 255)
        assert np.abs(changed - slow).max() <= 1
