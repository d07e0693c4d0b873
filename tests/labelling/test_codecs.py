"""Run lengths and polygons: every mask comes back as it went out, and what is no mask is refused."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from meal_gpu.errors import InputError
from meal_gpu.labelling import brush, coco_runs, cvat_runs
from meal_gpu.labelling.polygons import fill

coco_mask = pytest.importorskip("pycocotools.mask", reason="the peer of the COCO codec, in the extra [test]")

SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))
MASKS = SIZES.flatmap(lambda size: arrays(bool, size))
LARGE = np.zeros((300, 400), bool)
LARGE[20:280, 30:390] = True  # runs of more than 2^16 values do not fit a word


@given(MASKS)
def test_brush_masks_come_back(mask):
    rle = brush.encode(mask)
    assert all(0 <= byte < 256 for byte in rle)
    np.testing.assert_array_equal(brush.decode(rle, mask.shape), mask)


@pytest.mark.parametrize("mask", [LARGE, ~LARGE, np.ones_like(LARGE), np.zeros_like(LARGE)])
def test_long_runs_come_back(mask):
    np.testing.assert_array_equal(brush.decode(brush.encode(mask), mask.shape), mask)
    np.testing.assert_array_equal(coco_runs.decode(coco_runs.encode(mask), mask.shape), mask)


def test_a_stroke_is_painted_where_its_alpha_is_more_than_half():
    """Browsers smooth the edge of a stroke; the stream then holds values one by one, and not in bytes' places."""
    alpha = np.array([[0, 93, 127], [128, 147, 255]], np.uint8)
    values = np.zeros((2, 3, 4), np.uint8)
    values[..., 3] = alpha
    bits = [brush._bits(24, 32), brush._bits(7, 5), *(brush._bits(n - 1, 4) for n in (3, 4, 8, 16)),
            brush._bits(0, 1), brush._bits(2, 2), brush._bits(23, 8), np.unpackbits(values.ravel())]
    rle = np.packbits(np.concatenate(bits)).tolist()
    np.testing.assert_array_equal(brush.decode(rle, (2, 3)), alpha > 127)


@given(MASKS, st.data())
def test_a_brush_mask_that_is_cut_off_is_refused(mask, data):
    rle = brush.encode(mask)
    cut = data.draw(st.integers(0, len(rle) - 1))
    with pytest.raises(InputError, match=r"cut off|values"):
        brush.decode(rle[:cut], mask.shape)


@given(st.lists(st.integers(0, 255), max_size=60), SIZES)
def test_whatever_bytes_are_given_the_brush_decoder_refuses_or_decodes(rle, size):
    with contextlib.suppress(InputError):
        assert brush.decode(rle, size).shape == size


@pytest.mark.parametrize(("rle", "message"), [
    ([1, 2, 3], "cut off"),
    ([255] * 9, "it has 4294967295 values"),  # a bomb: nothing of that size is made
    ("abc", "no list of bytes"),
    ([0.5], "no list of bytes"),
    ([300], "no list of bytes"),
    ([True], "no list of bytes"),
    (None, "no list of bytes"),
])
def test_garbage_is_no_brush_mask(rle, message):
    with pytest.raises(InputError, match=message):
        brush.decode(rle, (4, 4))


def test_a_brush_mask_of_another_image_is_refused():
    with pytest.raises(InputError, match=r"it has 64 values, and its image of 4 x 5 pixels"):
        brush.decode(brush.encode(np.ones((4, 4), bool)), (5, 4))
    broken = np.unpackbits(np.array(brush.encode(np.ones((4, 4), bool)), np.uint8))
    broken[56:64] = 1  # a run that reaches beyond what the stream announces
    with pytest.raises(InputError, match="more than"):
        brush.decode(np.packbits(broken).tolist(), (4, 4))
    with pytest.raises(InputError, match="follows its last run"):
        brush.decode([*brush.encode(np.ones((4, 4), bool)), 0, 0], (4, 4))


@given(MASKS)
def test_coco_masks_come_back_and_are_those_of_pycocotools(mask):
    mine = coco_runs.encode(mask)
    theirs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert mine == {"size": theirs["size"], "counts": theirs["counts"].decode()}
    np.testing.assert_array_equal(coco_runs.decode(mine, mask.shape), mask)
    np.testing.assert_array_equal(coco_mask.decode({**mine, "counts": mine["counts"].encode()}), mask)
    plain = {"size": mine["size"], "counts": coco_runs._runs(mask.ravel(order="F"))}
    np.testing.assert_array_equal(coco_runs.decode(plain, mask.shape), mask)


@pytest.mark.parametrize(("segmentation", "message"), [
    ({"size": [3, 4], "counts": [12]}, "its size is"),
    ({"size": [4, 4], "counts": [10]}, "add up to 10"),
    ({"size": [4, 4], "counts": [-1, 17]}, "no list of run lengths"),
    ({"size": [4, 4], "counts": [10**18]}, "add up to"),
    ({"size": [4, 4], "counts": "o" * 40}, "cut off"),
    ({"size": [4, 4], "counts": "\x00"}, "which none have"),
    ({"size": [4, 4]}, "no list"),
    ({}, "its size is None"),
])
def test_what_is_no_coco_mask_is_refused(segmentation, message):
    with pytest.raises(InputError, match=message):
        coco_runs.decode(segmentation, (4, 4))


@given(MASKS.filter(np.any))
def test_cvat_masks_come_back(mask):
    runs, box = cvat_runs.encode(mask)
    assert sum(runs) == (box[2] - box[0]) * (box[3] - box[1])
    np.testing.assert_array_equal(cvat_runs.decode(runs, box, mask.shape), mask)


def test_a_real_mask_of_cvat():
    """Of the export in cvat#6487: runs begin with what is not in the mask."""
    found = cvat_runs.decode([3, 5, 4], (1, 2, 4, 6), (5, 7))
    assert found.sum() == 5
    assert found[1, 5]
    assert found[2, 2:6].all()
    assert not found[3].any()


@pytest.mark.parametrize(("runs", "box", "message"), [
    ([1600], (0, 0, 4, 4), "add up to 1600, and its box has 16"),
    ([20, -4], (0, 0, 4, 4), "add up to"),
    ([16], (0, 0, 4, 9), "is not within"),
    ([16], (-1, 0, 3, 4), "is not within"),
    ([0], (2, 2, 2, 2), "is not within"),
])
def test_what_is_no_cvat_mask_is_refused(runs, box, message):
    with pytest.raises(InputError, match=message):
        cvat_runs.decode(runs, box, (6, 8))


def by_hand(points, size):
    """Even-odd, point by point; and the pixels through whose centre an edge runs, where either answer is right."""
    found, either = np.zeros(size, bool), np.zeros(size, bool)
    for row in range(size[0]):
        for column in range(size[1]):
            x, y = column + 0.5, row + 0.5
            for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
                if (y0 > y) != (y1 > y):
                    at = x0 + (y - y0) * (x1 - x0) / (y1 - y0)
                    found[row, column] ^= x > at
                    either[row, column] |= abs(x - at) < 1e-9
    return found, either


CORNERS = st.lists(st.tuples(*[st.integers(-40, 200).map(lambda k: k / 16)] * 2), min_size=3, max_size=12)


@given(CORNERS)
def test_polygons_hold_the_pixels_whose_centre_is_inside(points):
    found, either = by_hand([(x, y + 1 / 57) for x, y in points], (10, 9))
    mine = fill(np.array(points) + np.array([0, 1 / 57]), (10, 9))
    np.testing.assert_array_equal(mine[~either], found[~either])


def test_the_corners_of_pixels_bound_whole_pixels():
    found = fill(np.array([[2, 1], [6, 1], [6, 4], [2, 4]]), (8, 8))
    expected = np.zeros((8, 8), bool)
    expected[1:4, 2:6] = True
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("points", [np.zeros((2, 2)), np.zeros((3, 3)), np.full((3, 2), np.nan), np.zeros((0,)),
                                    np.zeros((100_001, 2))])
def test_what_is_no_polygon_is_refused(points):
    with pytest.raises(InputError, match=r"corners"):
        fill(points, (4, 4))
