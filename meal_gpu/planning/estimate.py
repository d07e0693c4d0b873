"""What a round would take at least on a GPU that nobody has measured: arithmetic, and labelled as such.

Bytes, FLOPs and exponentials that each stage must have (`network_cost`), the bytes that its operations do move
(`traffic`), both over a data sheet's rates, and its launches, which the host starts one after the other. A stage takes
what the slower of GPU and host takes. `meal-gpu info CONFIG` and `meal-gpu bench --estimate` show it.
"""

import math
from dataclasses import dataclass, field, replace

import torch

from ..config import Config
from ..earlier import first_patches
from ..machine.backend import Backend
from ..machine.card import card
from ..machine.limits import usable_cores
from ..network.features import DEVICE_BATCH_PIXELS, images_per_batch
from .network_cost import Network
from .roofline import Roofs, Work
from .sizing import Extent, further_networks
from .traffic import Traffic, of_stages

# Memory bandwidth, dense bfloat16 products; exponentials are 16 a clock on each multiprocessor, at the boost clock
# (kernels/NOTES.md counts them).
DATA_SHEETS = {
    "h100": Roofs(0, "bfloat16", bytes=3.35e12, flops=989e12, exps=132 * 16 * 1.98e9),
    "a100": Roofs(0, "bfloat16", bytes=2.04e12, flops=312e12, exps=108 * 16 * 1.41e9),
}
FLOAT32 = {"h100": 67e12, "a100": 19.5e12}
"""Products in float32, without tensor cores, per second: distances between feature vectors."""
LAUNCH_S = 9e-6
"""Of the host for an operation that PyTorch runs eagerly on CUDA: 8 to 10 microseconds, not measured here."""
PNG_PIXELS = 45e6
"""Decoded per second by a core: 47 ms for 1024 × 2048 with DALI, measured on an AMD EPYC."""


def counts(config: Config, n: int, n_val: int, classes: int) -> dict[str, Work]:
    """Bytes, FLOPs and exponentials of a round's stages, in bfloat16: ``n`` images of the pool, ``n_val`` others."""
    network = Network.of(config, classes, torch.bfloat16, DEVICE_BATCH_PIXELS)
    per_image = config.data.tiling().per_image(config.data.context)
    labelled = middle(config, n)
    return {
        "features of the pool": network.features(n * per_image),
        "forward over the pool": network.forward(n * per_image),
        "patch_entropy of the pool": network.entropy(n * per_image),
        f"an epoch on {labelled:,} patches": network.training(labelled, config.train.batch_size),
        "an evaluation": network.evaluation(n_val * per_image),
    }


def middle(config: Config, n: int) -> int:
    """Labelled patches in the middle of a run on a pool of ``n`` images."""
    return first_patches(config, n) + config.query.rounds // 2 * config.query.n_query


@dataclass(frozen=True)
class Cost:
    """Of a stage: seconds of the GPU, and operations that the host launches."""

    gpu: float = 0.0
    launches: int = 0
    eager: bool = True
    bound: str = ""
    """What the GPU's seconds are bound by: ``memory``, ``exp``, ``FLOP``."""
    work: Work = field(default_factory=Work)
    """What must be done, with the bytes that are moved."""
    copied: int = 0
    """Bytes, where the stage is replayed as graphs: what PyTorch copies to where the graph reads it."""

    @property
    def host(self) -> float:
        return self.launches * LAUNCH_S * self.eager

    @property
    def seconds(self) -> float:
        """They overlap, so that the slower rules."""
        return max(self.gpu, self.host)

    @property
    def slower(self) -> str:
        """``host``, or what bounds the GPU."""
        return "host" if self.host > self.gpu else self.bound

    def times(self, n: int) -> "Cost":
        return replace(self, gpu=n * self.gpu, launches=n * self.launches, work=self.work.times(n),
                       copied=n * self.copied)

    def __str__(self) -> str:
        host = (f"host {_seconds(self.host)} for {self.launches:,} launches" if self.eager else
                f"replayed as graphs, with {self.copied / 1e9:.2g} GB of copies")
        return f"{_seconds(self.seconds)} (GPU {_seconds(self.gpu)}, {host})"


@dataclass(frozen=True)
class Round:
    """Costs of a round's stages, each done once."""

    features: Cost
    scoring: Cost
    """The whole pool, `kernel` within; with a backbone that is trained, features within."""
    kernel: Cost
    epoch: Cost
    """In the middle of a run."""
    evaluation: Cost


def costs(config: Config, device: str, n: int, n_val: int, classes: int) -> Round:
    """On a device of `DATA_SHEETS`: ``n`` images of the pool, ``n_val`` to validate on."""
    sheet, frozen, train = DATA_SHEETS[device], config.model.freeze_backbone, config.train
    features, forward, kernel, epoch, evaluation = counts(config, n, n_val, classes).values()
    moved, eager = of_stages(config, classes), config.model.compile == "none"
    batch = images_per_batch(config.data.tiling(), DEVICE_BATCH_PIXELS)

    def cost(parts: tuple[Work, ...], stage: str, times: int) -> Cost:
        """Of so many batches or steps: what the operations move, but no less than what must be done."""
        traffic: Traffic = moved[stage]
        copied = 0 if eager else times * traffic.copied
        done = replace(sum(parts, Work()), bytes=times * traffic.bytes + 2 * copied)
        least, bound = max((sheet.least(part) for part in parts), key=lambda found: found[0])
        least, moving = sum(sheet.least(part)[0] for part in parts), done.bytes / sheet.bytes
        return Cost(max(least, moving), times * traffic.launches, eager, "memory" if moving >= least else bound, done,
                    copied)

    def alone(work: Work, launches: int) -> Cost:
        return Cost(sheet.least(work)[0], launches, True, sheet.least(work)[1], work)

    batches = math.ceil(n / batch)
    return Round(
        features=alone(features, features.dispatches),
        scoring=cost((forward, kernel) if frozen else (features, forward, kernel), "scoring", batches),
        kernel=alone(kernel, 2 * batches),  # with the one that adds its parts up
        epoch=cost((epoch,), "training", max(middle(config, n) // train.batch_size, 1)),
        evaluation=cost((evaluation,), "evaluation", math.ceil(n_val / batch)))


def describe(config: Config, backend: Backend, extent: Extent) -> dict[str, str]:
    """The stages of a round and what each takes at least, for people."""
    if extent.n_given:
        config = config.revised("query", n_initial_images=extent.n_given)
    name = next((name for name in DATA_SHEETS if name in str(card().get("gpu", "")).lower()), "h100")
    sheet, query, train = DATA_SHEETS[name], config.query, config.train
    n, n_val, file_pixels = extent.n_images, extent.n_val, extent.file_pixels
    epochs = train.lasting(train.epochs, middle(config, n) // train.batch_size)
    frozen, evaluations = config.model.freeze_backbone, math.ceil(epochs / train.eval_every)
    each, networks = costs(config, name, n, n_val, extent.n_classes), 1 + further_networks(config)
    scoring = each.scoring.times(networks)
    training, validating = each.epoch.times(networks * epochs), each.evaluation.times(networks * evaluations)
    of_each = f", of each of {networks} networks (query.members)" if networks > 1 else ""
    fit = _embedding(config, n, name)
    each_round = fit if query.strategy == "meal_ft" else 0.0
    total = scoring.seconds + each_round + training.seconds + validating.seconds
    patches, cores = n * config.data.tiling().cells, usable_cores()
    decode, embed = "nothing: its scenes are drawn", "nothing"
    if file_pixels:
        decode = (f"{_seconds((n + n_val) * file_pixels / PNG_PIXELS / cores)} once, were all files PNG of "
                  f"{file_pixels / 1e6:.2f} Mpixel: {PNG_PIXELS / 1e6:.0f} Mpixel/s on each of {cores} cores")
    if fit:
        embed = f"{_seconds(fit)} {'in every round' if each_round else 'once per seed'}: UMAP's distances and moves"
    measured = "this machine" if backend.device.type == "cuda" else "this machine's CPU"
    return {
        "a round": f"at least {_seconds(total)} on an {name.upper()}: an ESTIMATE, not measured. Bytes that its "
                   f"operations move, FLOPs and exponentials over its data sheet's {sheet.bytes / 1e12:.2f} TB/s, "
                   f"{sheet.flops / 1e12:.0f} TFLOP/s in bfloat16, {FLOAT32[name] / 1e12:g} in float32, "
                   f"{sheet.exps / 1e12:.2f} T exp/s; {1e6 * LAUNCH_S:.0f} us of host a launch; the slower of the "
                   f"two counts. Reading, copies and libraries come on top. `meal-gpu bench` measures {measured}",
        "  decode": decode,
        "  features": f"{each.features} once: the backbone is frozen" if frozen else "within forward and train",
        "  forward": f"{scoring} for {n:,} images, the kernel within{of_each}",
        "  kernel": f"{_seconds(each.kernel.gpu)} for {patches:,} patches",
        "  embed": embed,
        "  train": f"{training} for {epochs} epochs on {middle(config, n):,} patches, the middle of a run{of_each}"
                   + ("; a pass of the backbone for each changed image comes on top, not counted"
                      if train.changes_images else "")
                   + ("; pseudo-labels come on top, not counted" if train.pseudo_labels else "")
                   + ("; images in a mirror come on top, not counted" if train.consistency else ""),
        "  evaluate": f"{validating} for {evaluations} times {n_val:,} images{of_each}",
    }


def _embedding(config: Config, n: int, name: str) -> float:
    """Seconds of a UMAP fit: distances of all pairs, then so many passes over the graph, six moves of two points each.

    Candidates that a trained backbone has moved are placed in every round, which is little beside the fit.
    """
    query, d = config.query, config.umap.n_components
    if query.strategy not in ("meal", "meal_ft"):
        return 0.0
    points = query.n_informative if query.strategy == "meal_ft" else n * config.data.tiling().cells
    channels = Network.of(config, 2, torch.bfloat16).maps(1)[1].shape[1]
    passes = 500 if points <= 10_000 else 200
    moved = passes * points * config.umap.n_neighbors * 6 * 2 * d * 4 * 2
    return 2 * points**2 * channels / FLOAT32[name] + moved / DATA_SHEETS[name].bytes


def _seconds(value: float) -> str:
    """For people: ``3.2 min``, ``1.42 s``, ``0.19 s``, ``21 ms``."""
    if value >= 100:
        return f"{value / 60:.1f} min"
    return f"{value:.3g} s" if value >= 0.1 else f"{1e3 * value:.2g} ms"
