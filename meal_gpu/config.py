"""The configuration of a run: typed, with the allowed range and the meaning of each key beside it.

Keys are part of the public contract. A YAML file gives some of them, ``--set a.b=c`` overrides single ones, and what
nobody gave has the default written here.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from .configbase import Float, Int, NonNegative, Positive, Section, as_written
from .configfile import parse_override, put, read_yaml
from .dataconfig import DataConfig
from .errors import InputError, did_you_mean
from .modelconfig import ModelConfig
from .trainconfig import TrainConfig

__all__ = ["MACHINE_KEYS", "Config", "DataConfig", "ModelConfig", "QueryConfig", "Section", "TrainConfig", "UmapConfig"]


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
    score: Literal["entropy", "least_confidence", "margin", "ratio"] = "entropy"
    """Uncertainty of a pixel, averaged over the patch: of the predicted class probabilities; ``ratio``: the second
    largest by the largest."""
    selector: Literal["seeding", "kmeans"] = "seeding"
    """``seeding``: k-means++ seeding; ``kmeans``: Lloyd's k-means, each centroid snapped to its nearest candidate."""
    min_distance: Annotated[Float, Field(ge=0, le=1)] = 0.0
    """Patches of a query are at least so far from each other and from labelled ones, by the pretrained backbone's
    features, if there are such patches; 1 is the typical distance of two. 0.2 keeps near-duplicates out, 0 nothing."""
    per_image: NonNegative = 0
    """Patches of one image in a query at most, if there are others; 0 sets no limit."""
    class_quota: Annotated[Float, Field(ge=0, le=1)] = 0.0
    """Part of a query that is shared out evenly among the predicted classes: for each, the strategy chooses among the
    ``n_informative`` patches with the most of it. 0 looks at no classes."""
    power: Annotated[Float, Field(ge=0)] = 0.0
    """Draw by score ^ power instead of taking the highest (Gumbel noise on the logarithm of scores): 1 is much noise,
    100 hardly any. 0 means none."""
    per_cost: Annotated[Float, Field(ge=0, le=1)] = 0.0
    """Divide scores by the clicks that a patch is expected to take, to this power; 0 does not."""
    dropout: Literal["last", "decoder", "all"] = "last"
    """``bald``: whose units samples drop: before the last convolution, in the decoder, or behind the ASPP as well."""
    samples: Annotated[Int, Field(ge=2, le=1000)] = 20
    """``bald``: samples of the network. Each takes 0.3, 37 or 81 % of a pass's products, by ``dropout``;
    docs/strategies.md has what that takes in time."""
    members: Annotated[Int, Field(ge=2, le=50)] = 5
    """``ensemble``, ``ensemble_votes``, ``ensemble_variation``: networks that are trained on the labels of each round.
    Each beyond the first costs another training, and in the pass over the pool all of the first one's work, but for a
    frozen backbone's."""
    hold_out: Annotated[Float, Field(gt=0, le=0.5)] = 0.2
    """``badge_calibrated`` and ``entropy_calibrated``: part of the labelled images that is not trained on, but shows
    how sure the network may be (the temperature)."""
    start: str = "images"
    """What is labelled at the start: ``images``, whole ones at random, or as many patches of all images, by a strategy
    that needs no trained network: random, random_spread, coreset, kmeans, typiclust, maxherding."""
    labels_of: str | None = None
    """The directory of another run: this one begins with all that it had labelled under the same seed, in place of
    images. With ``rounds: 0``, what another network or training makes of the same labels."""
    kmeans: Literal["auto", "cuml", "sklearn"] = "auto"
    """Who runs Lloyd's k-means for the selector of that name: cuML on CUDA, scikit-learn on the host."""
    scoring: Literal["local", "sharded"] = "local"
    """Who holds and scores the pool: this process, or Dask's workers, each a range of the images."""
    workers: int | str | None = None
    """``sharded``: how many processes on this machine, ``cuda`` for one per GPU of it, or a Dask scheduler's address;
    default: one process per four cores."""
    oracle: Literal["simulated", "people"] = "simulated"
    """``people``: write the query, stop, and go on with ``--resume`` when the masks have come."""
    annotators: Literal["latest", "majority"] = "latest"
    """``people``: where several have labelled a patch, the latest label counts, or per pixel what most of them say; a
    tie is unlabelled."""

    @model_validator(mode="after")
    def _check(self) -> "QueryConfig":
        if self.n_informative < self.n_query:
            raise ValueError(
                f"query.n_informative is {self.n_informative} and query.n_query is {self.n_query}: the candidates must "
                f"be at least as many as the query. Use query.n_informative >= {self.n_query}."
            )
        if self.labels_of is not None and self.start != "images":
            raise ValueError(f"query.labels_of is {self.labels_of!r} and query.start is '{self.start}': a run begins "
                             "with one of them. Leave out the other.")
        if self.labels_of is not None and self.oracle == "people":
            raise ValueError(f"query.labels_of is {self.labels_of!r} and query.oracle is 'people': the labels are "
                             "taken from the masks of the data set. Use query.oracle: simulated, or leave out "
                             "query.labels_of.")
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
    threads: int | str = "auto"
    """Threads of this process: a number, or ``auto`` for as many as it may use cores (``OMP_NUM_THREADS`` says
    otherwise). On the CPU equal runs need equal numbers. On small images one thread is as fast as two."""
    seeds: Annotated[list[NonNegative], Field(min_length=1)] = [0, 1, 2]  # noqa: RUF012 - pydantic copies it
    """One repetition of the run per seed: other initial images, weights and draws."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    query: QueryConfig = QueryConfig()
    umap: UmapConfig = UmapConfig()
    tracking: list[Literal["tensorboard", "mlflow"]] = []  # noqa: RUF012 - pydantic copies it
    """Where copies of the rounds' records go besides (``pip install 'meal-gpu[tensorboard]'``, ``[mlflow]``): event
    files in the run's directory; a run of MLflow, where ``MLFLOW_TRACKING_URI`` says."""

    @field_validator("threads", mode="before")
    @classmethod
    def _counted(cls, threads: object) -> object:
        if threads == "auto" or (isinstance(threads, int) and not isinstance(threads, bool) and threads >= 1):
            return threads
        raise ValueError(f"threads is {threads!r}. Give a number of threads (at least 1), or auto.")

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
        if self.data.unlabelled == "ask" and self.query.oracle != "people":
            raise ValueError(f"data.unlabelled is 'ask' and query.oracle is '{self.query.oracle}': nobody is asked. "
                             "Use query.oracle: people, or leave out data.unlabelled where all images have masks.")
        if self.train.sample == "image" and self.model.compile != "none":
            raise ValueError(f"train.sample is 'image' and model.compile is '{self.model.compile}': batches have as "
                             "many patches as their images have labels, and what is compiled is for one number. Use "
                             "train.sample: patch, or model.compile: none.")
        if self.train.unlabelled and self.model.compile != "none":
            key = "pseudo_labels" if self.train.pseudo_labels else "consistency"
            raise ValueError(f"train.{key} is {getattr(self.train, key):g} and model.compile is "
                             f"'{self.model.compile}': images have more or fewer patches without labels, and what is "
                             f"compiled is for one number. Use model.compile: none, or leave out train.{key}.")
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


MACHINE_KEYS = ("device", "threads", "data.root", "data.store", "data.placement", "data.budget_gb", "model.weights",
                "model.cache_features", "model.path", "query.scoring", "query.workers", "tracking")
"""What may differ when a run goes on, perhaps on another machine: nothing that a query depends on."""


class _Short(str):
    """Shown as it is."""

    __repr__ = str.__str__


def _short(value: Any) -> Any:
    """A value as a message shows it: of a large one only its beginning."""
    shown = repr(value)
    return value if len(shown) <= 300 else _Short(shown[:300] + " …")


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
        return f"{key} is {given!r}: {why}. Quote it, for example - \"{as_written(given)}\"."
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
