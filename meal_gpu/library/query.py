"""`meal_gpu.query`: which patches to label next, for any network and any images."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import Config
from ..data.frames import HeldFrames
from ..engine.acquire import acquire
from ..errors import InputError
from ..files import write_atomic
from ..grid import Grid, Size
from ..machine.backend import Backend, resolve
from ..network.features import Features
from ..network.model import DeepLabV3Plus
from ..network.reading import Outputs, layers_with_maps
from ..paths import expand
from ..records import Record
from ..stages.members import DISAGREEMENTS
from ..stages.pool import Pool
from ..stages.predict import BEYOND, PatchMaps
from ..stages.statistics import OF_INPUTS
from ..strategies.select import Strategy, find_strategy
from ..timing import Progress, StageClock
from .asking import Asking, Looking, pool_of
from .bar import shown
from .images import PREPARED, Files, Images, Pixels, Prepare, open_images
from .labelled import Labelled
from .manifold import Manifold
from .network import Layer, Observed
from .onnxfile import Onnx, Reader
from .passes import Foreign, Ours, Reading
from .saved import Replayed, Saved


@dataclass
class Answer:
    """The patches to label next."""

    patches: list[Record]
    """In the order of choosing, each ``{id, image, row, col, box, score}``: the image's name, the pixel box ``[y0, x0,
    y1, x1]`` (half open), and the mean uncertainty per pixel (entropy: nats), None where nothing was scored."""
    ids: Tensor
    """int64 ``[n]``, on the host: ``image * rows * cols + row * cols + col``."""
    scores: Tensor | None
    """float32 ``[n_patches]``: of all patches, on the network's device; None where the strategy needs none."""
    features: Tensor | None
    """float32 ``[n_patches, F]``: mean of the feature maps over each patch (equation 2), where they were needed."""
    manifold: Manifold
    """Give it to the next query of these images."""
    maps: PatchMaps | None = None
    """Entropy and prediction of the chosen patches, where they were asked for."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Of each stage."""


def query(
    network: Callable[..., Any] | Onnx | str | Path,
    images: Any,
    grid: tuple[int, int],
    n: int,
    *,
    labelled: Labelled = None,
    strategy: str | Strategy = "meal",
    features: Layer = None,
    manifold: Manifold | None = None,
    seed: int = 0,
    round: int = 0,
    score: str = "entropy",
    n_informative: int | None = None,
    selector: str = "seeding",
    min_distance: float = 0.0,
    umap: Mapping[str, Any] | None = None,
    align_corners: bool = False,
    outputs: Outputs = "logits",
    prepare: Prepare | str | None = None,
    names: Sequence[str] | None = None,
    size: Size | None = None,
    batch_size: int = 8,
    device: str | torch.device | None = None,
    maps: bool = False,
    out: str | Path | None = None,
    progress: bool | Progress = True,
) -> Answer:
    """Choose the n patches of a pool of images that are worth labelling next.

    >>> answer = meal_gpu.query(network, "photos", grid=(4, 4), n=32, features="backbone")   # doctest: +SKIP
    >>> answer.patches[0]                                                                    # doctest: +SKIP
    {'id': 71, 'image': 'street-04', 'row': 1, 'col': 3, 'box': [90, 360, 180, 480], 'score': 0.83}

    Parameters
    ----------
    network
        Any ``torch.nn.Module`` or function that maps a batch of images to logits ``[B, classes, h, w]`` of any stride,
        2 to 256 classes: alone, under ``out`` or ``logits``, or first in a tuple. It is used where it is, in its dtype
        and memory format, in eval mode, without gradients, and left in the mode that it was in. A
        `meal_gpu.DeepLabV3Plus` is looked at as a run looks at it: then ``features``, ``align_corners``, ``prepare``
        and ``batch_size`` are its own. Or a directory of saved predictions, a file per image: ``NAME.npy``,
        ``NAME.npz`` or ``NAME.pt``, each ``[classes, h, w]`` (see `meal_gpu.library.saved.Saved`). Or an ONNX file, by
        its path or as `meal_gpu.Onnx`.
    images
        The pool, images of one size: a directory of image files (decoded anew in every call, resized to ``size``), the
        directory of a store, uint8 RGB ``[N, H, W, 3]`` (tensor or array), the network's input itself, floating-point
        ``[N, 3, H, W]``, or a data set with ``len()`` and items by number, each such an input ``[3, H, W]``, alone,
        first in a tuple, or in a dict as ``image`` or ``pixel_values``. With saved predictions images give the names
        alone, and may be None: then the files say which there are.
    grid : (rows, cols)
        Patches of an image; each has ``H // rows × W // cols`` pixels.
    n
        How many.
    labelled
        What is labelled already and will not be asked for: bool ``[N, rows * cols]``, or patches as ids, as ``(image,
        row, col)`` with the image's number or name, or as in `Answer.patches`.
    strategy
        A name in ``meal_gpu.STRATEGIES``, or a `meal_gpu.Strategy` of your own.
    features
        Where feature maps ``[B, F, h, w]`` come from, which ``meal`` and ``meal_ft`` embed: the name of a module in the
        network, the number of one of its outputs, or a function of its input, such as a backbone. Of an ONNX file the
        name of an output.
    manifold
        The plane Φ of ``meal``, from an earlier `Answer`; without one it is fitted on the features of this call.
    seed, round
        Equal ones give equal answers. Count ``round`` up with each query.
    score
        ``entropy``, ``least_confidence``, ``margin`` or ``ratio``, per pixel, averaged over the patch.
    n_informative
        Of how many candidates of highest score ``meal`` and ``meal_ft`` choose; 200 by default, and never below n.
    selector, min_distance, umap
        As ``query.selector``, ``query.min_distance`` (which needs ``features``, too) and the section ``umap`` of a
        config.
    align_corners
        How outputs and features are interpolated to the images' size (bilinear), as in
        ``torch.nn.functional.interpolate``.
    outputs
        ``logits``, or ``probabilities`` that add up to 1 over the classes. These are interpolated as they are.
    prepare
        Makes the network's input of uint8 RGB ``[B, H, W, 3]`` on its device: a function, ``imagenet`` (mean and
        deviation; the default but for ONNX files, whose input must be stated), ``unit`` (0 … 1) or ``bytes`` (0 … 255).
        Not used where the images are that input.
    names
        One per image; numbers by default, files' names for files.
    size : (H, W), pixels
        Of a directory of files; by default the first one's. With saved predictions: what they are interpolated to, by
        default the size of the first.
    batch_size
        Images at a time. Memory does not grow with the pool, but for some numbers per patch.
    device
        Where the network is, if it has no parameters that tell.
    maps
        Also give entropy and prediction of the chosen patches, from a second pass over their images.
    out
        A directory to write ``query.json`` into. Nothing is written without it.
    progress
        A bar (in a notebook, too), none, or a function ``progress(stage, done, total)``.

    Raises
    ------
    InputError
        For what cannot be used, in one sentence: what was given, what is allowed, what to do.
    """
    found = strategy if isinstance(strategy, Strategy) else find_strategy(strategy)
    if isinstance(network, (str, Path)) and Path(network).suffix == ".onnx":
        network = Onnx(network)
    pool_images = _pool_images(network, images, names, size, prepare, outputs)
    tiling = Grid(*_pair(grid), *(size or pool_images.size() if isinstance(pool_images, Saved) else pool_images.size))
    config = _config(found, strategy, n, n_informative, score, selector, min_distance, umap, seed)
    manifold = manifold or Manifold()
    if not found.needs.isdisjoint(DISAGREEMENTS):
        raise InputError(f"Strategy '{config.query.strategy}' asks what several networks disagree about, and one was "
                         "given: a run trains the others (query.members). Use bald, which samples one network.")
    inside = found.needs & (OF_INPUTS | BEYOND.keys())
    if inside and not isinstance(network, DeepLabV3Plus):
        raise InputError(f"Strategy '{config.query.strategy}' looks inside the network ({', '.join(sorted(inside))}), "
                         "which takes a DeepLabV3Plus of meal-gpu. Use a strategy that looks at logits and features.")
    needs_maps = bool(found.needs & {"features", "embedding"}) or min_distance > 0
    looking: Looking
    with shown(progress) as report:
        reading = Reading(tiling, score, align_corners, outputs == "probabilities")
        if isinstance(pool_images, Saved):
            backend = resolve(config.model_copy(update={"device": "cpu"}), found.embeds)
            looking = Replayed(pool_images, reading, needs_maps)
        elif isinstance(network, DeepLabV3Plus):
            looking, backend = _ours(network, pool_images, tiling, config, found, score)
        else:
            assert not isinstance(network, (str, Path))  # these are saved predictions
            observed = _observed(network, features, outputs, device, pool_images, prepare)
            if needs_maps and features is None:
                raise InputError(_which_layer(observed, pool_images, config.query.strategy))
            if not needs_maps:
                observed.features, observed.layer = None, None
            config = config.model_copy(update={"device": observed.device.type})
            backend = resolve(config, found.embeds)
            looking = Foreign(observed, pool_images, reading, batch_size)
        asking = Asking(config, found, backend, looking, manifold, pool_images.names, report)
        pool = pool_of(tiling, looking.device, pool_images.names, labelled)
        n_free = pool.n_patches - len(pool.labelled_ids)
        if n_free < n:
            raise InputError(f"n is {n}, and {n_free} of the {pool.n_patches} patches are not labelled yet. Ask for "
                             "fewer.")
        if n_free < config.query.n_informative:
            asking.config = config.revised("query", n_informative=n_free)
        clock = StageClock(looking.device)
        chosen = acquire(asking, pool, network, seed, round, clock)
        seen = asking.seen
        patches = chosen.records(lambda patch: tiling.describe(patch, pool_images.names))
        answer = Answer(patches, chosen.ids, seen.score, seen.features, manifold,
                        looking.maps(chosen.ids) if maps else None, clock.seconds)
    if out is not None:
        _write(expand(out), answer, tiling, pool, config, seed, round)
    return answer


def _observed(network: Callable[..., Any] | Onnx, features: Layer, outputs: Outputs,
              device: str | torch.device | None, images: Images, prepare: Prepare | str | None) -> Observed:
    if not isinstance(network, Onnx):
        return Observed(network, features, outputs, device)
    if prepare is None and isinstance(images, (Pixels, Files)):
        raise InputError(f"{network.file} does not say how its input is normalised: state it by prepare, one of "
                         f"{', '.join(map(repr, PREPARED))}, or a function of uint8 RGB [B, H, W, 3].")
    if isinstance(features, str):
        return Observed(network.with_maps(features), 1, outputs, device)
    return Observed(network.with_maps(None), features, outputs, device)


def _pool_images(network: Any, images: Any, names: Sequence[str] | None, size: Size | None,
                 prepare: Prepare | str | None, outputs: Outputs) -> Images | Saved:
    if not isinstance(network, (str, Path)):
        return open_images(images, names, size, prepare)
    directory = expand(network)
    if not directory.is_dir():
        raise InputError(f"network is '{network}', which is no directory of saved predictions: give a torch.nn.Module, "
                         "a function, an .onnx file, or a directory of one .npy, .npz or .pt file per image.")
    if images is not None:
        names = names or open_images(images, None, size, prepare).names
    return Saved(directory, names, outputs)


def _ours(network: DeepLabV3Plus, images: Images, grid: Grid, config: Config, strategy: Strategy,
          score: str) -> tuple[Ours, Backend]:
    if not isinstance(images, Pixels):
        raise InputError("network is a DeepLabV3Plus, which takes pixels: give images as uint8 RGB [N, H, W, 3] or a "
                         "store (`meal-gpu ingest` makes one).")
    device = next(network.parameters()).device
    backend = resolve(config.model_copy(update={"device": device.type}), strategy.embeds)
    held = images.images if isinstance(images.images, np.ndarray) else images.images.to(device)
    frames = HeldFrames.of(held, grid, "image", device)
    return Ours(network, Features.of(frames, network, backend, cached=False), score, backend), backend


def _config(found: Strategy, strategy: str | Strategy, n: int, n_informative: int | None, score: str, selector: str,
            min_distance: float, umap: Mapping[str, Any] | None, seed: int) -> Config:
    """The checks of a config are those of these arguments."""
    name = strategy if isinstance(strategy, str) else getattr(found.choose, "__name__", "own")
    informative = max(200, n) if n_informative is None else n_informative
    return Config.load({"seeds": [seed], "umap": dict(umap or {}), "query": {
        "strategy": name, "n_query": n, "n_informative": informative, "score": score, "selector": selector,
        "min_distance": min_distance}})


def _pair(grid: Any) -> tuple[int, int]:
    if not isinstance(grid, (tuple, list)) or len(grid) != 2 or not all(isinstance(k, int) for k in grid):
        raise InputError(f"grid is {grid!r}: give (rows, columns) of patches per image, for example (4, 4).")
    return grid[0], grid[1]


def _which_layer(observed: Observed, images: Images, strategy: str) -> str:
    message = (f"Strategy '{strategy}' embeds features: say where they come from by features, the name of a layer that "
               "gives maps [B, channels, h, w], the number of an output, or a function of the network's input.")
    if isinstance(observed.network, Reader):
        return f"{message} Of an ONNX file: the name of an output, {', '.join(observed.network.network.outputs)}."
    if observed.module is None:
        return message
    with observed.in_use():
        first = observed.given(images.read([0], observed.device)).clone()
        layers = layers_with_maps(observed.module, first)
    return f"{message} Layers of this network with maps: {', '.join(layers[:24])}." if layers else message


def _write(directory: Path, answer: Answer, grid: Grid, pool: Pool, config: Config, seed: int, round_: int) -> None:
    content = {"grid": [grid.rows, grid.cols], "image_size": [grid.height, grid.width], "images": len(pool.names),
               "labelled": len(pool.labelled_ids), "seed": seed, "round": round_,
               "query": config.query.model_dump(mode="json", include={"strategy", "n_query", "n_informative", "score",
                                                                       "selector", "min_distance"}),
               "patches": answer.patches}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_atomic(directory / "query.json", json.dumps(content, indent=1).encode())
    except OSError as error:
        raise InputError(f"query.json cannot be written into {directory} ({error.strerror}); the answer was: "
                         f"{answer.ids.tolist()}.") from None
