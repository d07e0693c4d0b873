"""The configuration of a run: typed, with the allowed range and the meaning of each key beside it.

Keys are part of the public contract. A YAML file gives some of them, ``--set a.b=c`` overrides single ones, and what
nobody gave has the default written here.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from .configfile import parse_override, put, read_yaml
from .errors import InputError, did_you_mean
from .grid import Grid


def _no_bool(value: object) -> object:
    """Python counts True as 1; whoever writes ``epochs: true`` means something else."""
    if isinstance(value, bool):
        raise PydanticCustomError("number_type", "Input should be a number")
    return value


Int = Annotated[int, BeforeValidator(_no_bool)]
Float = Annotated[float, BeforeValidator(_no_bool)]
Positive = Annotated[Int, Field(ge=1)]
NonNegative = Annotated[Int, Field(ge=0)]
Byte = Annotated[Int, Field(ge=0, le=255)]
Colour = tuple[Byte, Byte, Byte]


def _listed(value: object) -> object:
    return value if isinstance(value, list | tuple) else [value]


def _listed_colours(value: object) -> object:
    return value if isinstance(value, list | tuple) and value and isinstance(value[0], list | tuple) else [value]


Bytes = Annotated[list[Byte], BeforeValidator(_listed)]
Colours = Annotated[list[Colour], BeforeValidator(_listed_colours)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


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
                                     f"of that name: \"{_as_written(name)}\".")
        names = values.get("class_names")
        if isinstance(names, dict):
            if "mask_colours" in values and values["mask_colours"] is not None:
                raise ValueError("data.class_names and data.mask_colours both give colours: give them once.")
            return {**values, "class_names": [name for name in names if name != "void"], "mask_colours": names}
        return values

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        if self.image_size[0] * self.image_size[1] > self.max_megapixels * 1e6:
            pixels = self.image_size[0] * self.image_size[1]
            raise ValueError(f"data.image_size is {list(self.image_size)}, {pixels / 1e6:,.0f} megapixels, and "
                             f"data.max_megapixels is {self.max_megapixels:g}. Use a smaller image_size, "
                             "or raise max_megapixels where memory allows.")
        self.tiling()
        if self.bands is not None and len(self.bands) == 2:
            raise ValueError(f"data.bands is {list(self.bands)}. Give three numbers (red, green, blue), or one (grey).")
        if self.dataset != "demo" and self.root is None:
            raise ValueError(f"data.root is missing: give the directory of the {self.dataset} data set.")
        if self.dataset == "folder" and not (self.class_names or self.mask_values or self.mask_colours):
            raise ValueError("data.class_names is missing: a folder data set needs the list of its class names.")
        return self

    def tiling(self) -> Grid:
        """The grid on this data set's images. Raises `InputError` where it does not fit."""
        return Grid(*self.grid, *self.image_size)


class ModelConfig(Section):
    backbone: str = "mobilenetv2_100"
    """A backbone of timm that gives maps at stride 4 and can be dilated to ``output_stride``, or whose own last stride
    that is. Transformers of one image size are none."""
    output_stride: Literal[8, 16, 32] = 16
    """Pixels of the image per cell of the backbone's last map."""
    weights: str = "imagenet"
    """``imagenet`` (timm downloads), ``none``, or a ``.safetensors`` file in timm's naming (``~`` is home)."""
    freeze_backbone: bool = True
    """No gradients and batch-norm in eval mode: then features are constants and are computed once."""
    precision: Literal["auto", "float32", "tf32", "bfloat16"] = "auto"
    """Of forward and backward. ``auto`` takes bfloat16 where the processor multiplies it natively (GPUs from compute
    capability 8.0 on, not a T4), else float32; ``float32`` is IEEE's everywhere; ``tf32``: float32 whose products a
    GPU may take of inputs rounded to 10 bits of mantissa, several times as fast (needs such a GPU)."""
    deterministic: bool = True
    """On CUDA: equal runs give equal bits. False leaves the order of sums in the backward pass to cuDNN, which then
    may be faster: by a tenth of a training step at most, by estimate; scoring and evaluation repeat themselves either
    way. On the CPU equal runs are equal with the same number of threads, whatever this says."""
    cache_features: Literal["auto", "always", "never"] = "auto"
    """Keep a frozen backbone's features on the device; ``auto`` does so when they fit into ``data.budget_gb``."""

    fold_norms: bool = False
    """Score and evaluate with the batch-norms folded into the convolutions before them, which rounds differently."""
    compile: Literal["none", "graphs", "inductor"] = "none"
    """How scoring, evaluation and training steps are run: operation by operation; ``graphs``: recorded, and replayed as
    CUDA graphs (on the CPU traced, but run one by one), the same arithmetic; ``inductor``: compiled, other rounding."""

    @property
    def without_weights(self) -> "ModelConfig":
        """The same network at random values: for shapes alone, or for weights that come from elsewhere."""
        return self.model_copy(update={"weights": "none"})

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        if self.cache_features == "always" and not self.freeze_backbone:
            raise ValueError("model.cache_features is 'always' and model.freeze_backbone is false: the features of a "
                             "backbone that is trained change in every step. Use model.cache_features: auto, or freeze "
                             "the backbone.")
        return self


class TrainConfig(Section):
    epochs: Positive = 25
    """Epochs in each round but the last, from new random weights of the head."""
    final_epochs: Positive = 32
    """Epochs after the last acquisition."""
    batch_size: Annotated[Int, Field(ge=2)] = 8
    """At least 2, since batch-norm of a pooled map needs two values."""
    sample: Literal["patch", "image"] = "patch"
    """What ``batch_size`` counts: labelled patches, or images with all of their labelled patches."""
    lr: Annotated[Float, Field(gt=0)] = 1e-3
    """Adam's learning rate."""
    lr_decay: Annotated[Float, Field(gt=0, le=1)] = 1.0
    """Factor of the learning rate; see ``lr_decay_every``."""
    lr_decay_every: NonNegative = 0
    """Multiply the learning rate by ``lr_decay`` every so many epochs; 0 keeps it constant."""
    eval_every: Positive = 1
    """Evaluate every so many epochs (and always after the last); the best epoch is chosen among those."""

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        if self.lr_decay < 1 and self.lr_decay_every == 0:
            raise ValueError(f"train.lr_decay is {self.lr_decay:g} and train.lr_decay_every is 0, so that it would "
                             "never be applied. Give train.lr_decay_every in epochs, or leave out train.lr_decay.")
        return self


class QueryConfig(Section):
    strategy: str = "meal"
    """What chooses the patches: a name in ``meal_gpu.STRATEGIES``."""
    rounds: NonNegative = 8
    """Queries after the initial labels."""
    n_initial_images: NonNegative = 2
    """Random images whose patches are all labelled at the start; 0 labels the whole pool (the supervised baseline).

    With ``context: image`` give at least 2: patches of one image share the image-pooling branch's input, and
    batch-norm then learns a variance of nearly 0 that blows up on other images.
    """
    n_query: Positive = 32
    """N: patches asked for in each round."""
    n_informative: Positive = 200
    """N_I: patches of highest score that the representative step chooses from (``meal``, ``meal_ft``)."""
    score: Literal["entropy", "least_confidence", "margin"] = "entropy"
    """Uncertainty of a pixel, averaged over the patch: of the predicted class probabilities."""
    selector: Literal["seeding", "kmeans"] = "seeding"
    """``seeding``: k-means++ seeding; ``kmeans``: Lloyd's k-means, each centroid snapped to its nearest candidate."""
    kmeans: Literal["auto", "cuml", "sklearn"] = "auto"
    """Who runs Lloyd's k-means for the selector of that name: cuML on CUDA, scikit-learn on the host."""
    scoring: Literal["local", "sharded"] = "local"
    """Who holds and scores the pool: this process, or Dask's workers, each a range of the images."""
    workers: int | str | None = None
    """``sharded``: how many processes on this machine, ``cuda`` for one per GPU of it, or a Dask scheduler's address;
    default: one process per four cores."""
    oracle: Literal["simulated", "people"] = "simulated"
    """``people``: write the query, stop, and go on with ``--resume`` when the masks have come."""

    @model_validator(mode="after")
    def _check(self) -> "QueryConfig":
        if self.n_informative < self.n_query:
            raise ValueError(
                f"query.n_informative is {self.n_informative} and query.n_query is {self.n_query}: the candidates must "
                f"be at least as many as the query. Use query.n_informative >= {self.n_query}."
            )
        if self.workers is not None and self.scoring == "local":
            raise ValueError(f"query.workers is {self.workers!r} and query.scoring is 'local', which uses none. Use "
                             "query.scoring: sharded, or leave out query.workers.")
        return self

    @field_validator("workers", mode="before")
    @classmethod
    def _place(cls, value: object) -> object:
        number = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if value is None or number or value == "cuda" or (isinstance(value, str) and "://" in value):
            return value
        raise ValueError(f"query.workers is {value!r}. Give a number of processes (at least 1), cuda, or the address "
                         "of a Dask scheduler such as tcp://node1:8786.")


class UmapConfig(Section):
    backend: Literal["auto", "cuml", "umap-learn"] = "auto"
    """cuML on CUDA, umap-learn on the host; ``auto`` takes cuML where a tiny call of it succeeds."""
    n_neighbors: Annotated[Int, Field(ge=2)] = 15
    """UMAP's size of a neighbourhood: small ones follow local structure, large ones the whole pool."""
    min_dist: Annotated[Float, Field(ge=0, le=1)] = 0.1
    """How close UMAP may place points."""
    n_components: Annotated[Int, Field(ge=2, le=64)] = 2
    """Dimensions of the embedding."""
    metric: Literal["euclidean", "manhattan", "chebyshev", "canberra", "braycurtis", "cosine",
                    "correlation"] = "euclidean"
    """Distance between feature vectors."""
    fit_at_most: Annotated[Int, Field(ge=3)] = 100_000
    """Patches that the Φ of the whole pool (``meal``) is fitted on: of a larger pool a sample, drawn by the seed, on
    which candidates are then placed."""


class Config(Section):
    """Everything a run needs; the same config and the same machine give the same queries, byte for byte."""

    device: Literal["auto", "cuda", "cpu"] = "auto"
    """``auto`` takes CUDA where a first call of the score kernel succeeds there."""
    seeds: Annotated[list[NonNegative], Field(min_length=1)] = [0, 1, 2]
    """One repetition of the run per seed: other initial images, weights and draws."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    query: QueryConfig = QueryConfig()
    umap: UmapConfig = UmapConfig()

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"seeds are {seeds}: each may stand there once.")
        return seeds

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if self.train.sample == "image" and self.data.context == "patch":
            raise ValueError("train.sample is 'image' and data.context is 'patch': where the network sees patches, a "
                             "sample is a patch. Use train.sample: patch, or data.context: image.")
        if self.train.sample == "image" and self.model.compile != "none":
            raise ValueError(f"train.sample is 'image' and model.compile is '{self.model.compile}': batches have as "
                             "many patches as their images have labels, and what is compiled is for one number. Use "
                             "train.sample: patch, or model.compile: none.")
        return self

    @classmethod
    def load(cls, source: str | Path | dict[str, Any], overrides: list[str] | None = None) -> "Config":
        """Read a YAML file, the name of a config that ships with meal-gpu, or a dict; apply ``a.b=c`` overrides.

        Raises `InputError` for an unknown file or key, a wrong type, a value out of range, an impossible combination.
        """
        values = dict(source) if isinstance(source, dict) else read_yaml(Path(source))
        for override in overrides or []:
            put(values, *parse_override(override), given=f"--set {override}")
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            lines = [_explain(cls, detail) for detail in error.errors()]
            where = "" if isinstance(source, dict) else f"{source}: "
            raise InputError(where + "\n".join(lines)) from None

    def revised(self, section: str, **values: Any) -> "Config":
        """With other values in one section. They are not checked: they come from the program."""
        return self.model_copy(update={section: getattr(self, section).model_copy(update=values)})

    def dump(self) -> str:
        """The fully resolved configuration as YAML; `load` of it gives an equal config."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def flat(self) -> dict[str, Any]:
        """Every key by its full name, such as ``train.epochs``, with its value as in YAML."""
        keys: dict[str, Any] = {}
        for name, value in self.model_dump(mode="json").items():
            inside = {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {}
            keys |= inside or {name: value}
        return keys


MACHINE_KEYS = ("device", "data.root", "data.store", "data.placement", "data.budget_gb", "model.weights",
                "model.cache_features", "query.scoring", "query.workers")
"""What may differ when a run goes on, perhaps on another machine: nothing that a query depends on."""


class _Short(str):
    """Shown as it is."""

    __repr__ = str.__str__


def _short(value: Any) -> Any:
    """A value as a message shows it: of a large one only its beginning."""
    shown = repr(value)
    return value if len(shown) <= 300 else _Short(shown[:300] + " …")


def _as_written(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "null" if value is None else str(value)


def _explain(model: type[BaseModel], detail: ErrorDetails) -> str:
    """One line for one validation error: what was given, what is allowed, the nearest valid name."""
    path = [str(part) for part in detail["loc"]]
    key = ".".join(path)
    detail = {**detail, "input": _short(detail["input"])}
    if detail["type"] == "extra_forbidden":
        fields: dict[str, Any] = dict(model.model_fields)
        for part in path[:-1]:
            fields = fields[part].annotation.model_fields
        return (f"Unknown key '{key}'.{did_you_mean(path[-1], fields)} Allowed here: {', '.join(fields)}.")
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "value_error":
        return message
    if detail["type"] == "literal_error":
        allowed = str(detail["ctx"]["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
        hint = did_you_mean(str(detail["input"]), allowed)
        return f"{key} is {detail['input']!r}. {message}.{hint}"
    if detail["type"] == "string_type" and "class_names" in path:
        given = detail["input"]
        why = (f"YAML reads yes, no, on, off, true and false as {str(given).lower()}" if isinstance(given, bool) else
               "YAML reads null, ~ and nothing as no value" if given is None else "names are text")
        return f"{key} is {given!r}: {why}. Quote it, for example - \"{_as_written(given)}\"."
    if "mask_colours" in path and detail["type"] in ("missing", "tuple_type", "too_long"):
        given = detail["input"]
        return f"{key} is {given!r}. Give a colour as [red, green, blue], for example [128, 64, 128]."
    if detail["type"] == "missing":  # only a pair of numbers has parts that must be there
        return f"{'.'.join(path[:-1])} is {detail['input']!r}. Give two numbers, for example [4, 4]."
    if detail["type"] == "tuple_type":
        return f"{key} is {detail['input']!r}. Give two numbers, for example [4, 4]."
    if detail["type"] == "model_type":
        return f"{key} is {detail['input']!r}. Give keys below it, for example those of configs/camvid.yaml."
    return f"{key} is {detail['input']!r}. {message}."
