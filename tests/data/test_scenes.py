"""The demo's street scenes: equal for equal arguments, masks that fit the image, rare classes that are rare."""

from pathlib import Path

import numpy as np
import pytest

from meal_gpu.data.datasets import read_image, read_mask
from meal_gpu.data.scenes import BLOCK, CLASSES, RARE, draw_scene, write_scene

SIZE = (90, 120)


@pytest.fixture(scope="module")
def scenes() -> list[tuple[np.ndarray, np.ndarray]]:
    return [draw_scene(i, 0, SIZE) for i in range(4 * BLOCK)]


def test_a_scene_is_a_function_of_index_split_and_size() -> None:
    image, mask = draw_scene(3, 0, SIZE)
    again, mask_again = draw_scene(3, 0, SIZE)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(mask, mask_again)
    for other in (draw_scene(4, 0, SIZE), draw_scene(3, 1, SIZE)):
        assert (other[1] != mask).mean() > 0.05


@pytest.mark.parametrize("size", [(4, 4), (8, 200), (200, 8), (45, 61), (180, 240)])
def test_any_size(size: tuple[int, int]) -> None:
    image, mask = draw_scene(0, 0, size)
    assert (image.shape, image.dtype, mask.shape, mask.dtype) == ((*size, 3), np.uint8, size, np.uint8)


def test_values_are_classes_and_void(scenes: list[tuple[np.ndarray, np.ndarray]]) -> None:
    values = np.unique([mask for _, mask in scenes])
    assert values.tolist() == [*range(len(CLASSES)), 255]


def test_rare_classes_are_rare_yet_in_every_block(scenes: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for label, count in RARE.items():
        shown = np.array([(mask == label).sum() >= 4 for _, mask in scenes]).reshape(-1, BLOCK)
        # Something nearer may hide it, so not always in as many scenes as intended, but never in more.
        assert (shown.sum(1) <= count).all()
        assert shown.any(1).mean() >= 0.75
        assert np.mean([(mask == label).mean() for _, mask in scenes]) < 0.02
    for label, name in enumerate(CLASSES):
        if label not in RARE:
            assert np.mean([(mask == label).any() for _, mask in scenes]) > 0.8, name


def test_the_mask_lies_on_the_image(scenes: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Along the borders of the mask the image changes; beside them it does so less."""

    def contrast(shift: int) -> float:
        found = []
        for image, mask in scenes[:8]:
            grey = image.mean(2)
            edge = np.roll(mask[:, 1:] != mask[:, :-1], shift, axis=1)
            found.append(np.abs(np.diff(grey, axis=1))[edge].mean())
        return float(np.mean(found))

    assert contrast(0) > 1.5 * max(contrast(-2), contrast(2))


def test_light_differs_between_scenes(scenes: list[tuple[np.ndarray, np.ndarray]]) -> None:
    brightness = [image.mean() for image, _ in scenes]
    assert min(brightness) < 80
    assert max(brightness) > 120
    assert all(image.std() > 15 for image, _ in scenes)


def test_files_hold_the_scene_and_its_classes(tmp_path: Path) -> None:
    image, mask = tmp_path / "a" / "x.png", tmp_path / "b" / "x.png"
    index = next(i for i in range(20) if (draw_scene(i, 1, SIZE)[1] == 255).any())  # void must survive the palette
    write_scene(index, 1, SIZE, image, mask)
    pixels, ids = draw_scene(index, 1, SIZE)
    np.testing.assert_array_equal(read_image(image), pixels)
    np.testing.assert_array_equal(read_mask(mask), ids)
    before = image.read_bytes(), image.stat().st_mtime_ns
    write_scene(index, 1, SIZE, image, mask)
    assert (image.read_bytes(), image.stat().st_mtime_ns) == before
