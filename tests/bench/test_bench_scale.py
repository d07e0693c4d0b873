"""Growth of time and memory, the drawn pool, the tables of the docs."""

import json

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_config

from meal_gpu import InputError
from meal_gpu.bench.parts import scale
from meal_gpu.bench.result import Growth, Result, shared, stage
from meal_gpu.bench.show import markdown as tables
from meal_gpu.bench.subjects.cityscapes import write
from meal_gpu.bench.timing.measure import Effort, Timing
from meal_gpu.bench.timing.memory import Peak
from meal_gpu.config import Config
from meal_gpu.data.datasets import VOID, open_dataset
from meal_gpu.data.imagefile import read_mask
from meal_gpu.planning.roofline import Roofs, Work

ROOFS = Roofs(1, "float32", bytes=1e10, exps=1e9, flops=1e11)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_law(power):
    sizes = np.array([10.0, 100.0, 1000.0])
    assert scale.exponent(sizes, 3 * sizes**power) == pytest.approx(power)


def test_growth_is_fitted_where_there_are_two_sizes_and_enough_memory():
    def at(milliseconds: float, added: int, names=("a",)):
        return [stage(name, 1, "patches", Timing((milliseconds / 1e3,)), ROOFS, Work(), Peak(host_added_bytes=added))
                for name in names]

    growth = scale.fits("patches", [10, 100], [at(1, 10**7, ("a", "b")), at(10, 10**8)])
    assert [one.stage for one in growth] == ["a"]
    assert growth[0].exponent == pytest.approx(1)
    assert growth[0].memory_exponent == pytest.approx(1)
    assert scale.fits("patches", [10, 100], [at(1, 10), at(10, 10**8)])[0].memory_exponent is None


def test_scale_runs(monkeypatch, tmp_path):
    """36 and 96 patches, two classes, two sizes: every stage grows over all three. UMAP would compile for a minute."""
    monkeypatch.setattr(scale, "measure_roofs", lambda *args: ROOFS)
    monkeypatch.setattr(scale, "SMALL", (64, 96))
    result = scale.run(tiny_config(tmp_path), Effort(0.0, 1, 1, 0.0), (36, 96), (3, 5), ((32, 48), (64, 96)),
                       umap_to=0)
    assert {growth.over for growth in result.growth} == {"patches", "classes", "pixels of an image"}
    assert {one.name for one in result.stages} == {"gather", "features", "vectors", "forward", "patch_entropy", "top-k",
                                                   "seeding"}
    assert result.stages[0].items == 96


def test_drawn_cityscapes_are_read_as_cityscapes(tmp_path):
    write(tmp_path, 2, 1, (64, 128))
    config = Config.load("cityscapes", [f"data.root={tmp_path}"])
    dataset = open_dataset(config.data)
    assert (len(dataset.train), len(dataset.val), len(dataset.class_names)) == (2, 1, 19)
    with Image.open(dataset.train[0].image) as image:
        assert image.size == (128, 64)
    classes = dataset.to_class[read_mask(dataset.train[0].mask)]
    assert {0, 10} <= set(np.unique(classes))  # road, sky
    assert set(np.unique(classes)) <= {*range(19), VOID}


def test_the_pages_hold_the_tables_of_the_results():
    """Run `python -m meal_gpu.bench.show.markdown` where this fails."""
    text = tables.PAGE.read_text()
    assert tables.HERE.updated(text, tables.some()) == text
    assert tables.ALL.read_text() == tables.everything()


def test_a_section_has_every_stage_and_is_put_between_the_marks(tmp_path):
    made = [stage(name, 10, "images", Timing((0.1, 0.2)), ROOFS, Work(flops=10**9), Peak(), per_round=1)
            for name in ("forward", "evaluation")]
    machine = {"cpu": "a CPU", "torch": "2", "commit": "abc"}
    round_ = Result(part="round", subject="CamVid", settings={}, machine=machine, device="cpu", roofs=ROOFS,
                    stages=shared(made))
    round_.write(tmp_path / "camvid-cpu.json")
    grown = Growth(stage="forward", over="patches", sizes=(1e3, 1e4), seconds=(0.1, 1.0), host_bytes=(10, 100),
                   exponent=1.0, memory_exponent=None)
    round_.model_copy(update={"part": "scale", "growth": (grown,)}).write(tmp_path / "a-scale.json")
    (tmp_path / "older.json").write_text(json.dumps({"roof": 1}))
    content = tables.section("there/", results=tmp_path)
    assert "| forward | 10 images | 150 (120–180) | 66.7 | FLOP | 7% | 50.0% |" in content
    assert "| forward | 1,000, 10,000 patches | 0.1, 1 | 1.00 | – |" in content
    assert "[`camvid-cpu.json`](there/camvid-cpu.json): a CPU" in content
    assert content.index("bench round") < content.index("bench scale")  # what says most comes first
    assert "older" not in content
    assert "scale" not in tables.section("", tables.ON_PAGE, tmp_path)
    text = f"before\n{tables.HERE.begin}\nold\n{tables.HERE.end}\nafter\n"
    assert tables.HERE.updated(text, content) == f"before\n{tables.HERE.begin}\n{content}{tables.HERE.end}\nafter\n"
    with pytest.raises(InputError, match="lacks the marks"):
        tables.HERE.updated("nothing", content)
