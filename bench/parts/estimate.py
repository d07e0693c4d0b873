"""``--estimate``: what a round's stages would take at least on a device that nobody has measured: arithmetic."""

from meal_gpu.config import Config
from meal_gpu.data.datasets import open_dataset
from meal_gpu.errors import InputError
from meal_gpu.planning.estimate import DATA_SHEETS, LAUNCH_S, costs, middle

from ..result import Estimate, Result
from ..timing.roofs import card

KNOWN = {"camvid": (367, 101, 11), "cityscapes": (2975, 500, 19)}
"""Images of the pool and of validation, and classes, so that no data is needed."""


def run(config: Config, device: str) -> Result:
    """The estimates for one round. Raises `InputError` for a device that has no data sheet here."""
    if device not in DATA_SHEETS:
        raise InputError(f"--estimate is {device!r}. Allowed: {', '.join(DATA_SHEETS)}.")
    if config.data.dataset in KNOWN:
        n, n_val, classes = KNOWN[config.data.dataset]
    else:
        dataset = open_dataset(config.data)
        n, n_val, classes = len(dataset.train), len(dataset.val), len(dataset.class_names)
    sheet, each = DATA_SHEETS[device], costs(config, device, n, n_val, classes)
    stages = {"features of the pool": each.features, "scoring of the pool": each.scoring,
              "patch_entropy of the pool": each.kernel,
              f"an epoch on {middle(config, n):,} patches": each.epoch, "an evaluation": each.evaluation}
    rows = tuple(Estimate(stage=name, device=device, work=cost.work, milliseconds=1e3 * cost.seconds,
                          bound=cost.slower, launches=cost.launches, host_ms=1e3 * cost.host, gpu_ms=1e3 * cost.gpu)
                 for name, cost in stages.items())
    return Result(part="round", subject=f"{config.data.dataset}: {n:,} images of {config.data.image_size[0]} × "
                  f"{config.data.image_size[1]}, an estimate for {device}", settings={}, machine=card(), device="none",
                  roofs=sheet, stages=(), estimates=rows, notes=(
                      f"Each figure is an ESTIMATE: bytes that the operations move, FLOPs and exponentials over the "
                      f"{device}'s data-sheet rates ({sheet.bytes / 1e12:.2f} TB/s, {sheet.flops / 1e12:.0f} TFLOP/s "
                      f"bfloat16, {sheet.exps / 1e12:.2f} T exp/s), and {1e6 * LAUNCH_S:.0f} us of host for each "
                      "launch; of the two the slower counts.",
                      "Scoring contains patch_entropy; decoding and UMAP are in none. They are lower bounds: real "
                      "times are higher."))
