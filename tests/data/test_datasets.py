"""Which files a data set lists, what their values mean, and what is said about files that cannot be used."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from meal_gpu.config import DataConfig
from meal_gpu.data.datasets import DATASETS, INVALID, VOID, Dataset, open_dataset, read_image, read_mask
from meal_gpu.errors import InputError
from meal_gpu.kernels import confusion_counts
from meal_gpu.stages.evaluate import Score

Make = Callable[..., Path]


def opened(dataset: str, root: Path, **keys: object) -> Dataset:
    if dataset == "folder":
        keys.setdefault("class_names", ["road", "tree", "car"])
    return open_dataset(DataConfig.model_validate({"dataset": dataset, "root": root, **keys}))


# --- listing ----------------------------------------------------------------------------------------------------------


def test_camvid_pairs_images_with_masks_in_sorted_order(make_camvid: Make) -> None:
    root = make_camvid(n=3, n_val=2)
    (root / "train" / "._seq_00000.png").write_bytes(b"left by macOS")
    (root / "train" / "Thumbs.db").write_bytes(b"left by Windows")
    data = opened("camvid", root)
    assert [s.name for s in data.train] == ["seq_00000", "seq_00001", "seq_00002"]
    assert data.train[1].mask == root / "trainannot" / "seq_00001.png"
    assert [len(data.train), len(data.val)] == [3, 2]
    assert data.to_class[:13].tolist() == [*range(11), VOID, INVALID]
    assert (data.to_class[12:] == INVALID).all()
    assert data.palette.shape == (11, 3)


@pytest.mark.camvid
def test_camvid_classes_are_where_they_are_in_the_world(camvid_root: Path) -> None:
    data = opened("camvid", camvid_root)
    assert (len(data.train), len(data.val)) == (367, 101)
    height, brightness, pixels = np.zeros(11), np.zeros(11), np.zeros(11)
    for sample in data.train[::8]:
        assert sample.mask is not None
        ids, grey = data.to_class[read_mask(sample.mask)], read_image(sample.image).mean(2)
        for c in range(11):
            y, x = np.nonzero(ids == c)
            height[c] += (ids.shape[0] - y).sum()
            brightness[c] += grey[y, x].sum()
            pixels[c] += len(y)
    height, brightness = height / pixels, brightness / pixels
    rank = [data.class_names[i] for i in np.argsort(-height)]
    assert rank[0] == "Sky"
    assert {rank[-1], rank[-2]} == {"Road", "Pavement"}
    assert data.class_names[int(brightness.argmax())] == "Sky"
    assert set(rank[1:5]) == {"Building", "Pole", "Tree", "SignSymbol"}
    assert data.class_names[int(pixels.argmax())] == "Road"
    assert data.class_names[int(pixels.argmin())] in ("Bicyclist", "Pedestrian")


def test_cityscapes_agrees_with_the_official_table(make_cityscapes: Make) -> None:
    from cityscapesscripts.helpers.labels import labels

    data = opened("cityscapes", make_cityscapes())
    valid = set()
    for label in labels:
        value = label.id % 256  # id -1 is 255 in an 8-bit file
        valid.add(value)
        if label.trainId in (255, -1):
            assert data.to_class[value] == VOID, label.name
        else:
            assert data.to_class[value] == label.trainId
            assert data.class_names[label.trainId] == label.name
            assert tuple(data.palette[label.trainId]) == label.color
    assert len(data.class_names) == 19
    assert {v for v in range(256) if data.to_class[v] != INVALID} == valid


def test_cityscapes_lists_cities_in_order(make_cityscapes: Make) -> None:
    data = opened("cityscapes", make_cityscapes(n=2, n_val=1))
    assert [s.name for s in data.train] == ["aachen_000000_000019", "aachen_000001_000019", "bonn_000000_000019",
                                            "bonn_000001_000019"]
    assert [s.name for s in data.val] == ["aachen_000000_000019", "bonn_000000_000019"]
    assert all(s.mask is not None and s.mask.is_file() and s.image.is_file() for s in data.train)


def test_folder_takes_several_formats_and_maps_ids(make_folder: Make) -> None:
    root = make_folder(n=3)
    Image.open(root / "images" / "img1.png").save(root / "images" / "img1.JPG", "JPEG")
    (root / "images" / "img1.png").unlink()
    data = opened("folder", root, ignore_index=7)
    assert [s.image.name for s in data.train] == ["img0.png", "img1.JPG", "img2.png"]
    assert data.to_class[[0, 1, 2, 3, 7, 255]].tolist() == [0, 1, 2, INVALID, VOID, INVALID]
    assert len(np.unique(data.palette, axis=0)) == 3


def test_an_ignore_index_that_is_also_a_class_is_no_class(make_folder: Make) -> None:
    """It stayed a class that nothing is ever of: IoU 0 in every mean, and a logit that only errs."""
    data = opened("folder", make_folder(), ignore_index=0)
    assert data.class_names == ("tree", "car")
    assert data.to_class[:4].tolist() == [VOID, 0, 1, INVALID]
    assert len(data.palette) == 2


def test_the_void_class_enters_no_mean(make_folder: Make) -> None:
    """Road and tree at 1, car confused: 0.400 of five with void, 0.500 of four without."""
    data = opened("folder", make_folder(), ignore_index=0, class_names=["void", "a", "b", "c", "d"])
    truth = torch.from_numpy(data.to_class[np.array([[[0, 1, 2, 3, 4]]])])
    predicted = torch.tensor([0, 0, 1, 3, 2])  # what the void pixel is taken for is no matter
    logits = torch.nn.functional.one_hot(predicted, len(data.class_names)).T[None, :, None].float()
    confusion = confusion_counts(logits, truth, (1, 5))
    assert Score.of(confusion) == Score((1.0, 1.0, 0.0, 0.0), 0.5)


def test_mask_values_map_any_value_to_any_class(make_folder: Make) -> None:
    root = make_folder()
    data = opened("folder", root, class_names=None, mask_values={"background": 0, "object": [255, 7], "void": 3})
    assert data.class_names == ("background", "object")
    assert data.to_class[[0, 255, 7, 3, 1]].tolist() == [0, 1, 1, VOID, INVALID]
    # The order is that of class_names, where both are given; ignore_index is void where no class asks for its value.
    data = opened("folder", root, class_names=["object", "background"], ignore_index=9,
                  mask_values={"background": 1, "object": 2})
    assert data.to_class[[0, 1, 2, 9]].tolist() == [INVALID, 1, 0, VOID]


@pytest.mark.parametrize(("keys", "message"), [
    ({"class_names": ["a", "b"], "mask_values": {"a": 0}}, "data.mask_values has no value for 'b'"),
    ({"class_names": ["road"], "mask_values": {"roat": 0}}, "'roat', which is none of data.class_names. Did you mean"),
    ({"mask_values": {"a": 0, "b": [1, 0]}, "class_names": None}, "gives the value 0 to both 'a' and 'b'"),
    ({"class_names": ["only"], "ignore_index": 0}, "data.ignore_index is 0, which leaves no class"),
    ({"class_names": ["only"]}, "There is one class, 'only'"),  # it trained, and ended in the kernel's traceback
    ({"class_names": ["void", "road"], "ignore_index": 0}, "mask_values: {background: 0, road: 1}"),
    ({"class_names": {"road": [9, 9, 9], "void": [0, 0, 0]}}, "There is one class, 'road'"),
])
def test_tables_that_cannot_be_are_refused(keys: dict, message: str, make_folder: Make) -> None:
    assert message in refused("folder", make_folder(), **keys)


def test_folder_without_masks_and_without_validation(make_folder: Make) -> None:
    root = make_folder()
    shutil.rmtree(root / "masks")
    data = opened("folder", root, masks=None, val_images=None)
    assert [s.mask for s in data.train] == [None] * 4
    assert data.val == ()


def test_demo_draws_once_and_only_what_is_missing(tmp_path: Path) -> None:
    def times(data: Dataset) -> list[int]:
        return [s.image.stat().st_ctime_ns for s in data.train]

    config = {"store": tmp_path, "image_size": (32, 48), "n_images": 3, "n_val_images": 2}
    first = open_dataset(DataConfig.model_validate(config))
    drawn = times(first)
    (first.train[1].image).unlink()
    more = open_dataset(DataConfig.model_validate({**config, "n_images": 4}))
    assert len(more.train) == 4
    assert [a == b for a, b in zip(drawn, times(more), strict=False)] == [True, False, True]
    assert all(s.mask is not None and s.mask.is_file() for s in (*more.train, *more.val))
    assert not list(tmp_path.rglob(".*"))  # no temporary file is left
    elsewhere = open_dataset(DataConfig.model_validate({**config, "root": tmp_path / "here"}))
    assert elsewhere.train[0].image.is_relative_to(tmp_path / "here")


def test_demo_scenes_of_other_numbers_are_other_scenes(tmp_path: Path) -> None:
    config = {"store": tmp_path, "image_size": (32, 48), "n_images": 2, "n_val_images": 1}
    first, other = (open_dataset(DataConfig.model_validate({**config, "first_image": n})) for n in (0, 1))
    pixels = [[s.image.read_bytes() for s in data.train] for data in (first, other)]
    assert pixels[0][1] == pixels[1][0], "both are scene 1"
    assert pixels[0][0] != pixels[1][1]
    assert [s.name for s in other.train] == ["train_0001", "train_0002"]
    assert not {s.image for s in first.train} & {s.image for s in other.train}


def test_a_new_data_set_is_one_function_and_one_line(make_folder: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def squares(data: DataConfig) -> Dataset:
        files = DATASETS["folder"](data.model_copy(update={"class_names": ["a", "b", "c"]}))
        return Dataset("squares", ("x",), files.palette[:1], np.zeros(256, np.uint8), files.train, ())

    monkeypatch.setitem(DATASETS, "camvid", squares)
    assert opened("camvid", make_folder()).name == "squares"


# --- bad directories --------------------------------------------------------------------------------------------------


def refused(dataset: str, root: Path, **keys: object) -> str:
    with pytest.raises(InputError) as caught:
        opened(dataset, root, **keys)
    return str(caught.value)


@pytest.mark.parametrize("dataset", ["camvid", "cityscapes", "folder"])
def test_missing_directory(dataset: str, tmp_path: Path) -> None:
    (tmp_path / "datasets").mkdir()
    message = refused(dataset, tmp_path / "dataset")
    assert f"{tmp_path / 'dataset'} does not exist" in message
    assert "Did you mean 'datasets'?" in message
    assert "data.root" in message


def test_missing_split_names_what_is_there(make_camvid: Make) -> None:
    root = make_camvid()
    (root / "valannot").rename(root / "val_annot")
    message = refused("camvid", root)
    assert str(root / "valannot") in message
    assert "Did you mean 'val_annot'?" in message


def test_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "is not a directory" in refused("camvid", tmp_path / "file")


@pytest.mark.parametrize("key", ["images", "masks", "val_images", "val_masks"])
def test_folder_names_the_key_of_a_missing_directory(key: str, make_folder: Make) -> None:
    assert f"data.{key}" in refused("folder", make_folder(), **{key: "nowhere"})


@pytest.mark.parametrize("dataset", ["camvid", "cityscapes", "folder"])
def test_empty_data_set(dataset: str, tmp_path: Path) -> None:
    for name in ("train", "trainannot", "val", "valannot", "images", "masks", "val_images", "val_masks",
                 *(f"{top}/{split}/ulm" for top in ("leftImg8bit", "gtFine") for split in ("train", "val"))):
        (tmp_path / name).mkdir(parents=True)
    assert "holds no images" in refused(dataset, tmp_path)


@pytest.mark.parametrize(("dataset", "image", "mask"), [
    ("camvid", "train/seq_00001.png", "trainannot/seq_00001.png"),
    ("camvid", "val/seq_00001.png", "valannot/seq_00001.png"),
    ("cityscapes", "leftImg8bit/train/bonn/bonn_000001_000019_leftImg8bit.png",
     "gtFine/train/bonn/bonn_000001_000019_gtFine_labelIds.png"),
    ("folder", "images/img1.png", "masks/img1.png"),
    ("folder", "val_images/img1.png", "val_masks/img1.png"),
])
def test_image_without_mask_and_mask_without_image(dataset: str, image: str, mask: str,
                                                   request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(f"make_{dataset}")()
    (root / mask).rename(root / "kept")
    message = refused(dataset, root)
    assert f"{root / image} has no mask: expected {root / mask}." in message
    (root / "kept").rename(root / mask)
    (root / image).unlink()
    assert f"{root / mask} is a mask without image" in refused(dataset, root)


def test_folder_refuses_two_images_of_one_stem(make_folder: Make) -> None:
    root = make_folder()
    shutil.copy(root / "images" / "img0.png", root / "images" / "img0.bmp")
    assert "have the same stem 'img0'" in refused("folder", root)


def test_folder_refuses_impossible_combinations(make_folder: Make) -> None:
    root = make_folder()
    assert "data.val_masks is null" in refused("folder", root, val_masks=None)
    assert "2 names, 1 of them different" in refused("folder", root, class_names=["road", "road"])
    assert "give 1 to 254" in refused("folder", root, class_names=[f"c{i}" for i in range(255)])
