"""Shared fixtures: the real data beside the repository, and small data sets of each layout, drawn with noise."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Before PyTorch is imported. One thread in every test process and in those that it starts: on maps this small a team of
# threads costs more than it computes, and where cores are shared it waits for its own members, spinning (25 times the
# CPU seconds on a busy machine). Set without asking how many processes there are: pytest-xdist's workers inherit what
# its controller set, so that a share of the cores would come out as all of them in each. What depends on the number of
# threads is tested with more than one by tests that ask for them; those threads wait asleep.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hypothesis
import numpy as np
import pytest
from PIL import Image

# A busy machine is no failure: speed is measured by bench, never by a test.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# Files that take seconds, slowest first, as measured. pytest-xdist hands out whole files (a module's fixtures are made
# once then), by default those with most tests first: single long tests were left for the end, and cores stood idle.
SLOW = ("workers", "sweep", "equal_runs", "bench_stream", "bench_round", "begin", "damage", "camvid", "kill",
        "selfcheck", "compile", "rounds", "stop_set", "given", "terminate", "estimate", "terminals", "entropy_cpu",
        "cli", "docs", "sizing", "device", "strange_users", "confusion_cuda", "scripts", "entropy_cuda", "check",
        "train", "export",
        "confusion_camvid", "together", "apart", "entropy_cuda_build", "padded", "umap_learn", "bench_scale",
        "frames", "locks", "preflight", "budgets", "query", "entropy_cuda_threads", "backbone", "conformance",
        "fuzz", "literature", "heap", "bench_compare", "gpu_workers", "pretrained", "select", "bench_measure",
        "changed_pool", "model", "shards", "bench_workers", "certificates", "runs", "page")

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow files first; the others fill up what is left."""
    rank = {f"test_{name}.py": i for i, name in enumerate(SLOW)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


def _needed(path: Path) -> Path:
    if not path.exists():
        message = f"{path} is not there: this test needs the real file"
        if os.environ.get("MEAL_GPU_REQUIRE_DATA") == "1":
            pytest.fail(f"{message}, and MEAL_GPU_REQUIRE_DATA=1 forbids skipping it")
        pytest.skip(message)
    return path


@pytest.fixture(scope="session")
def camvid_root() -> Path:
    """The real CamVid."""
    return _needed(SHARED / "data" / "camvid")


@pytest.fixture(scope="session")
def weights_file() -> Path:
    """ImageNet weights of the default backbone, in timm's naming."""
    return _needed(SHARED / "weights" / "mobilenetv2_100_imagenet.safetensors")


@pytest.fixture
def off_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """This repository is not where modules are looked for: transformers knows a package of PyPI called `kernels`."""
    root = Path(__file__).resolve().parents[1]
    monkeypatch.setattr(sys, "path", [path for path in sys.path if Path(path or ".").resolve() != root])


@pytest.fixture
def one_thread() -> Iterator[None]:
    """What is compared with workers of one thread each: equal bits need equal numbers of threads."""
    import torch

    from meal_gpu.machine.backend import _start_threads

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    _start_threads()
    yield
    torch.set_num_threads(before)
    _start_threads()


def write_pair(image: Path, mask: Path, size: tuple[int, int], ids: list[int], seed: int) -> None:
    """A noise image and a mask that holds each of ``ids`` (when it has so many pixels), both PNG."""
    rng = np.random.default_rng(seed)
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(image)
    # Blocks of one id in rows: like a real mask, and every id appears.
    rows = np.resize(np.array(ids, np.uint8), max(size[0], len(ids)))[: size[0]]
    Image.fromarray(np.repeat(rng.permutation(rows)[:, None], size[1], axis=1)).save(mask)


@pytest.fixture
def make_camvid(tmp_path: Path) -> Callable[..., Path]:
    """``make_camvid(n=4, n_val=2, size=(24, 32))`` -> root of a data set in CamVid's layout."""

    def make(n: int = 4, n_val: int = 2, size: tuple[int, int] = (24, 32)) -> Path:
        root = tmp_path / "camvid"
        for split, count, seed in (("train", n, 0), ("val", n_val, 1000)):
            for i in range(count):
                name = f"seq_{i:05d}.png"
                write_pair(root / split / name, root / f"{split}annot" / name, size, list(range(12)), seed + i)
        return root

    return make


@pytest.fixture
def make_cityscapes(tmp_path: Path) -> Callable[..., Path]:
    """``make_cityscapes(n=2, n_val=1, size=(40, 80))`` -> root in Cityscapes' layout, ``n`` images in 2 cities each."""

    def make(n: int = 2, n_val: int = 1, size: tuple[int, int] = (40, 80)) -> Path:
        root = tmp_path / "cityscapes"
        for split, count, seed in (("train", n, 0), ("val", n_val, 1000)):
            for city in ("bonn", "aachen"):
                for i in range(count):
                    stem = f"{city}_{i:06d}_000019"
                    write_pair(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png",
                               root / "gtFine" / split / city / f"{stem}_gtFine_labelIds.png", size,
                               list(range(34)), seed + i)
        return root

    return make


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """``make_folder(n=4, n_val=2, size=(24, 32), classes=3)`` -> root with images, masks, val_images, val_masks."""

    def make(n: int = 4, n_val: int = 2, size: tuple[int, int] = (24, 32), classes: int = 3) -> Path:
        root = tmp_path / "folder"
        for prefix, count, seed in (("", n, 0), ("val_", n_val, 1000)):
            for i in range(count):
                write_pair(root / f"{prefix}images" / f"img{i}.png", root / f"{prefix}masks" / f"img{i}.png", size,
                           [*range(classes), 255], seed + i)
        return root

    return make
