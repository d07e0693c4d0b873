"""The section ``data`` of a config: which images and masks, and how they are read."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from .configbase import Float, Int, NonNegative, Positive, Section, as_written
from .grid import Grid

Byte = Annotated[Int, Field(ge=0, le=255)]
Colour = tuple[Byte, Byte, Byte]


def _listed(value: object) -> object:
    return value if isinstance(value, list | tuple) else [value]


def _listed_colours(value: object) -> object:
    return value if isinstance(value, list | tuple) and value and isinstance(value[0], list | tuple) else [value]


Bytes = Annotated[list[Byte], BeforeValidator(_listed)]
Colours = Annotated[list[Colour], BeforeValidator(_listed_colours)]


class DataConfig(Section):
    dataset: Literal["camvid", "cityscapes", "folder", "demo"] = "demo"
    """The layout of ``root``; ``folder`` is for your own images, ``demo`` draws synthetic street scenes."""
    root: Path | None = None
    """Directory of the data set. Needed by all but ``demo``, which draws its scenes."""
    image_size: tuple[Positive, Positive] = (360, 480)
    """(height, width) in pixels that images are resized to (bilinear) and masks (nearest)."""
    resize: Literal["stretch", "fit"] = "stretch"
    """``fit`` keeps an image's aspect ratio: it lies in the upper left, what it does not fill is void, and patches that
    are mostly void so are never asked for."""
    tile: tuple[Positive, Positive] | None = None
    """(height, width) in pixels of a file: cuts each file into images of that size, from the upper left, which are then
    resized to ``image_size``. What lies beyond a file's edge is void, and patches that mostly do are not asked for."""
    grid: tuple[Positive, Positive] = (4, 4)
    """(rows, cols) of patches per image."""
    context: Literal["patch", "image"] = "image"
    """What the network sees of a patch, alike in training, scoring and evaluation: the patch alone or its image."""
    placement: Literal["auto", "resident", "streamed"] = "auto"
    """Where the pool's images live: ``resident`` on the device, ``streamed`` from the store, ``auto`` by the budget."""
    budget_gb: Annotated[Float, Field(gt=0)] | None = None
    """Device memory in GB (1e9 bytes) for the resident pool and the feature cache; default: half of what is free."""
    loader: Literal["auto", "dali", "torchvision"] = "auto"
    """What decodes images: ``auto`` takes DALI where it is installed (Linux). DALI also streams the store to a GPU; on
    the CPU only where it is asked for, since the mapped store is faster there."""
    store: Path | None = None
    """Directory for decoded images; default ``$XDG_CACHE_HOME/meal-gpu`` or ``~/.cache/meal-gpu``."""
    images: str = "images"
    """``folder``: the directory of images below ``root``, or a pattern of files such as ``images/**/*.jpg``."""
    masks: str | None = "masks"
    """``folder``: the directory of masks with the same stems, or where an image's mask stands, such as
    ``masks/{dir}/{stem}_mask.png``; ``null`` when people label (``query.oracle: people``)."""
    val_images: str | None = "val_images"
    """``folder``: validation images, or ``null`` for none (then no mIoU is reported)."""
    val_masks: str | None = "val_masks"
    """``folder``: masks of the validation images, with the same stems."""
    val_fraction: Annotated[Float, Field(ge=0, lt=1)] = 0.0
    """``folder``: hold out such a share of the labelled images for validation, whole files, the same in every run;
    ``val_images`` is ``null`` then."""
    unlabelled: Literal["stop", "ask"] = "stop"
    """``folder``: an image of the pool without a mask stops a run; ``ask``: a run begins with the labels that are
    there, and asks people for patches of the other images, and for those that hold no label at all."""
    class_names: list[str] | None = None
    """``folder``: one name per class id 0, 1, ...; masks hold these ids, or what ``mask_values`` says. With colours,
    ``{road: [128, 64, 128]}``, they are ``mask_colours`` too."""
    mask_values: dict[str, Bytes] | None = None
    """``folder``: the value, or the values, that a class has in masks, such as ``{background: 0, object: 255}``; also
    of ``void``. Values that are not there are refused."""
    mask_colours: dict[str, Colours] | None = None
    """``folder``: the colour, or the colours, ``[red, green, blue]``, that a class has in RGB masks; also ``void``."""
    ignore_index: Byte = 255
    """``folder``: the mask value of pixels that are neither trained on nor evaluated (void). A class whose id it is, is
    none: it has no logit and enters no mean. ``mask_values`` that name the value win."""
    palette: Literal["auto", "index", "colour"] = "auto"
    """What masks with a palette hold: ``index``, ids; ``colour``, greys that are ids or the classes' colours; ``auto``
    tells by the palette, and refuses one that can be read in two ways."""
    exif: Literal["apply", "ignore"] = "apply"
    """Whether images are turned as their EXIF orientation says; ``ignore`` where masks were drawn on the raw pixels."""
    bands: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=3)] | None = None
    """Of TIFF files with more bands than colours: which are red, green and blue, such as ``[4, 3, 2]``, or which one is
    grey, ``[1]``; counted from 1. Needs tifffile (``pip install 'meal-gpu[tiff]'``)."""
    absent_classes: Literal["stop", "allow"] = "stop"
    """``folder``: a class that no pixel of the pool has stops a run before it trains, or does not."""
    max_megapixels: Annotated[Float, Field(gt=0)] = 500
    """Larger image files are refused by their header, and so is an ``image_size`` of more; reading one takes 3 bytes a
    pixel."""
    n_images: Annotated[Positive, Field(le=1_000_000)] = 24
    """``demo``: scenes to draw for the pool."""
    n_val_images: Annotated[Positive, Field(le=1_000_000)] = 8
    """``demo``: scenes to draw for validation."""
    first_image: NonNegative = 0
    """``demo``: the number of the first scene, in the pool and in validation: other numbers are other scenes."""

    @model_validator(mode="before")
    @classmethod
    def _names_with_colours(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        for key in ("class_names", "mask_values", "mask_colours"):
            table = values.get(key)
            for name in table if isinstance(table, dict) else ():
                if not isinstance(name, str):
                    raise ValueError(f"data.{key} has the key {name!r}, which is no text. Write each class as "
                                     f"name: value; YAML reads yes, no, on and off as true and false, so quote a class "
                                     f"of that name: \"{as_written(name)}\".")
        if values.get("val_fraction") and "val_images" not in values:
            values = {**values, "val_images": None}
        names = values.get("class_names")
        if isinstance(names, dict):
            if "mask_colours" in values and values["mask_colours"] is not None:
                raise ValueError("data.class_names and data.mask_colours both give colours: give them once.")
            return {**values, "class_names": [name for name in names if name != "void"], "mask_colours": names}
        return values

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        pixels = self.image_size[0] * self.image_size[1]
        if pixels > self.max_megapixels * 1e6:
            raise ValueError(f"data.image_size is {list(self.image_size)}, {pixels / 1e6:,.0f} megapixels, and "
                             f"data.max_megapixels is {self.max_megapixels:g}. Use a smaller image_size, "
                             "or raise max_megapixels where memory allows.")
        self.tiling()
        if self.tile is not None and self.resize == "fit":
            raise ValueError("data.resize is 'fit' and data.tile is given: tiles are all of one size. Leave out "
                             "data.resize, and give data.tile the aspect ratio of data.image_size.")
        if self.bands is not None and len(self.bands) == 2:
            raise ValueError(f"data.bands is {list(self.bands)}. Give three numbers (red, green, blue), or one (grey).")
        if self.dataset != "demo" and self.root is None:
            raise ValueError(f"data.root is missing: give the directory of the {self.dataset} data set.")
        if self.val_fraction and self.val_images is not None:
            raise ValueError(f"data.val_fraction is {self.val_fraction:g} and data.val_images is '{self.val_images}': "
                             "validation images are a folder of their own or a share of the labelled ones. Leave out "
                             "one of the two.")
        for key, given in (("val_fraction", self.val_fraction), ("unlabelled", self.unlabelled != "stop")):
            if given and self.dataset != "folder":
                raise ValueError(f"data.{key} is for data.dataset: folder, and data.dataset is '{self.dataset}': leave "
                                 "it out.")
        if self.dataset == "folder" and not (self.class_names or self.mask_values or self.mask_colours):
            raise ValueError("data.class_names is missing: a folder data set needs the list of its class names.")
        return self

    def tiling(self) -> Grid:
        """The grid on this data set's images. Raises `InputError` where it does not fit."""
        return Grid(*self.grid, *self.image_size)
