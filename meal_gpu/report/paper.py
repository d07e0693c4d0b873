"""Table 1 of the paper, and the rule that says which runs may be put beside it.

A value of the paper is shown only for a run that spends the same budget in the same way on the same network: data
set, image size, grid, initial images, patches a round, rounds, candidates, score, backbone and whether it is frozen.
Settings of the training that differ do not hide the value; they are listed beside it as `Reference.departures`.
"""

from dataclasses import dataclass

from ..config import Config, TrainConfig

COLUMNS = ("random", "entropy", "meal", "meal_ft")


@dataclass(frozen=True)
class Row:
    """One row of Table 1: mean IoU on the validation set after the final acquisition step."""

    dataset: str
    finetuned: bool
    n_initial_images: int
    n_query: int
    rounds: int
    miou: tuple[float, float, float, float]  # in the order of COLUMNS
    supervised: float


# The paper gives the budget (5 % and 1 % of all patches) rather than the rounds: 32 + 8 x 32 = 288 of 5,872 patches,
# 32 + 14 x 32 = 480 and 320 + 6 x 25 = 470 of 47,600.
TABLE_1 = (
    Row("camvid", False, 2, 32, 8, (0.509, 0.516, 0.558, 0.573), 0.635),
    Row("camvid", True, 2, 32, 8, (0.52, 0.528, 0.54, 0.596), 0.73),
    Row("cityscapes", False, 2, 32, 14, (0.298, 0.325, 0.326, 0.330), 0.497),
    Row("cityscapes", True, 20, 25, 6, (0.328, 0.357, 0.377, 0.378), 0.618),
    Row("cityscapes", False, 20, 25, 6, (0.277, 0.310, 0.312, 0.313), 0.497),
    Row("cityscapes", True, 2, 32, 14, (0.333, 0.384, 0.402, 0.395), 0.618),
)

# The paper's Cityscapes patches have 128 x 256 pixels, a sixteenth of half-size images, while its text speaks of full
# size: either is accepted.
IMAGE_SIZES = {"camvid": {(360, 480)}, "cityscapes": {(512, 1024), (1024, 2048)}}


@dataclass(frozen=True)
class Reference:
    """The paper's numbers for a run. ``miou`` is None for a strategy that Table 1 does not have."""

    miou: float | None
    supervised: float
    departures: list[str]
    """Settings that differ from the paper's without changing what was asked for, as ``key value (paper: value)``."""


def reference(config: Config) -> Reference | None:
    """The paper's numbers for this run's protocol, or None where the protocol is not the paper's."""
    data, model, query = config.data, config.model, config.query
    same_network = model.factory is None and model.backbone == "mobilenetv2_100" and model.weights != "none"
    rows = [row for row in TABLE_1 if row.dataset == data.dataset and row.finetuned != model.freeze_backbone]
    if query.labels_of is not None or not rows or not same_network or data.image_size not in IMAGE_SIZES[data.dataset]:
        return None
    if query.n_initial_images == 0:  # everything labelled: neither grid nor query matters
        return Reference(rows[0].supervised, rows[0].supervised, _supervised_departures(config))
    if data.grid != (4, 4) or not _same_query(config):
        return None
    budget = (query.n_initial_images, query.n_query, query.rounds)
    for row in rows:
        if budget == (row.n_initial_images, row.n_query, row.rounds):
            miou = dict(zip(COLUMNS, row.miou, strict=True)).get(query.strategy)
            return Reference(miou, row.supervised, _departures(config))
    return None


def _same_query(config: Config) -> bool:
    """Whether scores and candidates are the paper's, as far as the strategy uses them."""
    query = config.query
    if query.strategy == "random":
        return True
    if query.strategy == "entropy":
        return query.score == "entropy"
    return query.score == "entropy" and query.n_informative == 200


def _departures(config: Config) -> list[str]:
    train = config.train
    settings: dict[str, tuple[object, object]] = {
        "train.epochs": (train.epochs, 25), "train.final_epochs": (train.final_epochs, 32),
        "train.batch_size": (train.batch_size, 8), "train.lr": (train.lr, 0.001),
        "train.lr_decay_every": (train.lr_decay_every if train.lr_decay < 1 else 0, 0), **_recipe(train),
    }
    if config.query.strategy in ("meal", "meal_ft"):
        settings["query.selector"] = (config.query.selector, "seeding")
        settings["umap.n_components"] = (config.umap.n_components, 2)
    return _differences(settings)


def _supervised_departures(config: Config) -> list[str]:
    train = config.train
    return _differences({
        "train.final_epochs": (train.final_epochs, 60), "train.batch_size": (train.batch_size, 2),
        "train.sample": (train.sample, "image"), "train.lr": (train.lr, 0.0008),
        "train.lr_decay": (train.lr_decay, 0.1), "train.lr_decay_every": (train.lr_decay_every, 20),
        **_recipe(train),
    })


def _recipe(train: TrainConfig) -> dict[str, tuple[object, object]]:
    """What neither of the paper's trainings has."""
    return {f"train.{key}": (getattr(train, key), TrainConfig.model_fields[key].default)
            for key in ("schedule", "optimizer", "min_steps", "ema", "flip", "scale", "colour",
                        "classmix", "pseudo_labels", "consistency")}


def _differences(settings: dict[str, tuple[object, object]]) -> list[str]:
    return [f"{key} {here} (paper: {there})" for key, (here, there) in settings.items() if here != there]
