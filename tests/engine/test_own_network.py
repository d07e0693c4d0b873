"""Runs with somebody's network or training: the same rounds, equal seeds equal runs, errors before long work."""

import json
import logging
import shutil
from pathlib import Path

import own_networks
import pytest
import torch
from networks import plain as plain_loop
from safetensors.torch import load_file
from tiny import tiny_config
from typer.testing import CliRunner

from meal_gpu import cli
from meal_gpu.config import Config
from meal_gpu.data.pixels import normalise
from meal_gpu.engine.acquire import acquire
from meal_gpu.engine.experiment import prepare
from meal_gpu.errors import InputError
from meal_gpu.folders.network import load, logits
from meal_gpu.launch import resume, run
from meal_gpu.records import read_rounds
from meal_gpu.strategies.select import STRATEGIES
from meal_gpu.timing import StageClock

HERE = str(Path(__file__).resolve().parents[1])


def own_config(tmp_path, factory="own_networks:plain", **more) -> Config:
    base = tiny_config(tmp_path).model_dump(exclude_unset=True)
    base["model"] = {"factory": factory, "path": HERE, "precision": "float32"}
    for key, value in more.items():
        section, _, name = key.partition("__")
        base[section][name] = value
    return Config.load(base)


def timeless(directory: Path) -> list[dict]:
    return [{key: value for key, value in record.items() if key not in ("seconds", "peak_bytes")}
            for record in read_rounds(directory / "seed-0")]


KINDS = {
    "plain, crops": {"data__context": "patch"},
    "plain, images": {"data__context": "image"},
    "frozen, two maps": {"factory": "own_networks:staged", "model__freeze_backbone": True},
    "frozen, one map": {"factory": "own_networks:staged", "model__freeze_backbone": True, "data__context": "image",
                        "model__arguments": {"maps": 1}},
    "staged, trained": {"factory": "own_networks:staged", "query__strategy": "meal_ft"},
    "own training": {"train__factory": "own_networks:train_copy", "data__context": "image"},
    "ensemble": {"query__strategy": "ensemble", "query__members": 2, "data__context": "image"},
    "ensemble, own training": {"query__strategy": "ensemble", "query__members": 2, "data__context": "image",
                               "factory": "own_networks:staged", "model__freeze_backbone": True,
                               "train__factory": "own_networks:train_copy"},
}


@pytest.fixture
def two_threads():
    """With one thread all sums are in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("kind", KINDS)
def test_equal_seeds_give_equal_runs_and_a_killed_one_goes_on(tmp_path, kind):
    config = own_config(tmp_path, **KINDS[kind])
    first, second = run(config, tmp_path / "a"), run(config, tmp_path / "b")
    assert timeless(first) == timeless(second)
    lines = (second / "seed-0" / "rounds.jsonl").read_bytes().splitlines(keepends=True)
    (second / "seed-0" / "rounds.jsonl").write_bytes(b"".join(lines[:2]))
    assert timeless(resume(second)) == timeless(first)
    records = read_rounds(first / "seed-0")
    assert len(records) == config.query.rounds + 1
    assert all(record["miou"] is not None for record in records)
    scored = "score" in STRATEGIES[config.query.strategy].needs
    assert all((patch["score"] is not None) == scored for patch in records[0]["next_query"])
    _, _, function = config.model.factory.partition(":")
    module = getattr(own_networks, function)(len(records[0]["iou"]), **config.model.arguments)
    module.load_state_dict(load_file(first / "seed-0" / "model.safetensors"))  # its names are the module's own
    page = (first / "report.html").read_text()
    assert f"The network {config.model.factory}" in page


@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize("maps", [1, 2])
def test_scores_and_vectors_are_those_of_a_plain_loop(tmp_path, align, maps):
    config = own_config(tmp_path, "own_networks:staged", model__freeze_backbone=True, data__context="image",
                        model__arguments={"maps": maps}, model__align_corners=align)
    experiment = prepare(config)
    model, grid = experiment.new_model(0, 0).eval(), experiment.grid
    seen = experiment.look(model, {"score", "features"}, experiment.new_pool().free)
    module, frames = model.module, normalise(torch.from_numpy(experiment.stores.train.images[:]))

    def whole(x):
        made = module.features(x)
        return module.logits(*(made if maps == 2 else [made]))

    def high(x):
        made = module.features(x)
        return made[1] if maps == 2 else made

    scores, vectors = plain_loop(whole, frames, (grid.height, grid.width), (grid.rows, grid.cols), align=align,
                                 maps=high)
    assert torch.allclose(seen.score.double(), scores, rtol=1e-5, atol=1e-6)
    assert torch.allclose(seen.features.double(), vectors, rtol=1e-4, atol=1e-5)


def test_frozen_features_are_computed_once_and_stay(tmp_path, monkeypatch):
    config = own_config(tmp_path, "own_networks:staged", model__freeze_backbone=True)
    calls = []
    features = own_networks.Staged.features
    monkeypatch.setattr(own_networks.Staged, "features", lambda self, x: calls.append(len(x)) or features(self, x))
    experiment = prepare(config)
    assert experiment.train.frozen.cache is not None
    before = len(calls)
    a, b = experiment.new_model(0, 0), experiment.new_model(0, 1)
    assert len(calls) == before
    states = [{name: value for name, value in model.state_dict().items() if model.constant(name)} for model in (a, b)]
    assert {name.split(".")[0] for name in states[0]} == {"stem", "deep"}
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    a.train()
    assert a.module.up.training
    assert not a.module.stem.training
    assert not a.module.deep[3].training


@pytest.mark.parametrize("strategy", ["ripu", "ripu_patch", "equal", "cereals", "clasp", "entropy_calibrated",
                                      "coreset", "spectral"])
def test_strategies_that_look_at_outputs(tmp_path, strategy):
    config = own_config(tmp_path, query__strategy=strategy, data__context="image")
    experiment = prepare(config)
    pool = experiment.new_pool()
    ids = torch.tensor([1, 2, 9, 14])
    pool.reveal(ids, torch.zeros(4, pool.grid.patch_height, pool.grid.patch_width, dtype=torch.uint8))
    chosen = acquire(experiment, pool, experiment.new_model(0, 0), 0, 0, StageClock(torch.device("cpu")))
    assert len(set(chosen.ids.tolist()) - set(ids.tolist())) == config.query.n_query


@pytest.mark.parametrize("strategy", ["badge", "bald", "badge_calibrated"])
def test_strategies_that_look_inside_our_network_are_refused(tmp_path, strategy):
    with pytest.raises(InputError, match=f"strategy '{strategy}' looks inside the network .*, which takes the one"):
        prepare(own_config(tmp_path, query__strategy=strategy))


def test_the_network_that_a_run_leaves_labels_other_images(tmp_path):
    """`meal-gpu predict`, by the logits at the frames' own size."""
    config = own_config(tmp_path, query__rounds=0, query__strategy="random", data__context="image")
    directory = run(config, tmp_path / "run")
    experiment = prepare(config)
    left = load(directory / "seed-0", config, len(experiment.class_names), torch.device("cpu"))
    images = experiment.stores.train.images[:3]
    found = logits(left.model, images, config, experiment.backend, 2)
    with torch.no_grad():
        small = left.model.module(normalise(torch.from_numpy(images)))
    expected = torch.nn.functional.interpolate(small, images.shape[1:3], mode="bilinear")
    assert torch.allclose(torch.stack(found), expected, rtol=1e-4, atol=1e-5)


def test_patches_are_kept_apart(tmp_path):
    config = own_config(tmp_path, query__min_distance=0.2, query__strategy="entropy")
    experiment = prepare(config)
    pool = experiment.new_pool()
    ids = torch.tensor([1, 2, 9])
    pool.reveal(ids, torch.zeros(3, pool.grid.patch_height, pool.grid.patch_width, dtype=torch.uint8))
    chosen = acquire(experiment, pool, experiment.new_model(0, 0), 0, 0, StageClock(torch.device("cpu")))
    assert len(set(chosen.ids.tolist())) == config.query.n_query


def test_workers_import_the_factory_too(tmp_path, one_thread):
    """Byte for byte the queries of one process; model.path is where this process finds it."""
    kinds = {"plain": {}, "frozen": {"factory": "own_networks:staged", "model__freeze_backbone": True}}
    for kind, more in kinds.items():
        local = run(own_config(tmp_path, **more), tmp_path / f"{kind}-local")
        sharded = run(own_config(tmp_path, **more, query__scoring="sharded", query__workers=2),
                      tmp_path / f"{kind}-two")
        assert [record["next_query"] for record in timeless(local)] == [
            record["next_query"] for record in timeless(sharded)]


def test_what_a_run_was_made_with_is_kept_and_a_changed_module_is_said(tmp_path, caplog, monkeypatch):
    folder = tmp_path / "mine"
    folder.mkdir()
    shutil.copy(Path(own_networks.__file__), folder / "changing_networks.py")
    monkeypatch.chdir(folder)
    config = own_config(tmp_path, "changing_networks:plain", model__path=None, model__arguments={"width": 4},
                        query__rounds=1)
    directory = run(config, tmp_path / "run")
    held = json.loads((directory / "environment.json").read_text())["model.factory"]
    assert held["file"] == str(folder / "changing_networks.py")
    assert held["arguments"] == {"width": 4}
    assert len(held["sha256"]) == 64
    with caplog.at_level(logging.WARNING, "meal_gpu"):
        resume(directory)
        assert "has changed" not in caplog.text
        with (folder / "changing_networks.py").open("a") as file:
            file.write("# another line\n")
        resume(directory)
    assert "changing_networks.py has changed since the run last went on: model.factory" in caplog.text


@pytest.mark.parametrize(("more", "said"), [
    ({"factory": "own_networkz:plain"}, r"there is no module own_networkz in .*, nor among what is installed"),
    ({"factory": "own_networks:plan"}, r"own_networks has no function 'plan'\. Did you mean 'plain'\?"),
    ({"factory": "smp:Unett"}, r"smp has no function 'Unett'\. Did you mean 'Unet"),
    ({"model__path": "/no/such"}, r"model\.path is /no/such, which is no directory"),
    ({"model__arguments": {"widht": 3}}, r"failed with \d+ classes .*TypeError: .*'widht'"),
    ({"model__freeze_backbone": True}, r"freeze_backbone is true, and what .* returns has no methods"),
    ({"model__feature_layer": "bakbone"}, r"feature_layer is 'bakbone', .*Did you mean 'backbone'\?"),
    ({"model__feature_layer": "pool.0.flat"}, r"which is no module of"),
    ({"model__feature_layer": "spare"}, r"feature_layer 'spare' is not used by model\.factory"),
    ({"factory": "own_networks:headless"},
     r"looks at features: name the layer of .* by model\.feature_layer; there are body\.0 .*, body \[11, 16, 16\]\.$"),
    ({"factory": "own_networks:staged", "model__feature_layer": "up"}, r"says itself what its features are"),
    ({"factory": "own_networks:staged", "model__freeze_backbone": True, "model__arguments": {"leak": True}},
     r"the features of .* depend on what trainable\(\) names"),
    ({"train__factory": "own_networks:trian"}, r"has no function 'trian'\. Did you mean 'train'\?"),
    *[({"factory": "own_networks:wrong", "model__arguments": {"kind": kind}}, said) for kind, said in {
        "channels": r"gives \d+ channels, and the data set has \d+ classes", "probabilities": "these are probabilities",
        "nan": "not finite on a frame of noise", "dict": "gives a dict with 'scores': give logits",
        "elsewhere": "its logits are on meta: let it answer where it is asked", "writes": "changes its input in place",
        "fails": "failed on a batch .*RuntimeError", "no module": "returns a str: return a torch.nn.Module"}.items()],
], ids=str)
def test_bad_networks_are_told_before_anything_is_trained(tmp_path, more, said):
    with pytest.raises(InputError, match=said) as error:
        run(own_config(tmp_path, **more), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize(("function", "more", "said"), [
    ("train_another", {}, "returned another network than it was given"),
    ("train_nothing", {}, "returned nothing: return the trained torch.nn.Module"),
    ("train_what_is_frozen", {"factory": "own_networks:staged", "model__freeze_backbone": True},
     r"changed stem\.0\.weight, which model\.freeze_backbone keeps"),
])
def test_bad_trainings_are_told(tmp_path, function, more, said):
    with pytest.raises(InputError, match=said):
        run(own_config(tmp_path, train__factory=f"own_networks:{function}", **more), tmp_path / "run")


@pytest.mark.parametrize(("keys", "said"), [
    (["model.factory=smp"], "model.factory is 'smp'. Give package.module:function, smp:NAME or torchvision:NAME."),
    (["train.factory=mine"], "train.factory is 'mine'. Give package.module:function."),
    (["model.arguments={width: 3}"], "model.arguments is given and model.factory is not"),
    (["model.factory=a:b", "model.backbone=resnet18"], "model.backbone is 'resnet18', which is of the network that"),
    (["model.factory=a:b", "model.compile=graphs"], "model.compile is 'graphs', which is of the network that ships"),
])
def test_keys_that_do_not_go_together(keys, said):
    with pytest.raises(InputError) as error:
        Config.load({}, keys)
    assert said in str(error.value)


def test_from_a_shell(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(own_config(tmp_path, model__path=None).dump())
    call = ["run", str(file), "--path", str(tmp_path / "none"), "--out", str(tmp_path / "run")]
    error = CliRunner().invoke(cli.app, call).exception
    assert f"model.path is {tmp_path / 'none'}, which is no directory" in str(error)
    told = CliRunner().invoke(cli.app, ["info", str(file), "--set", f"model.path={HERE}"])
    assert told.exit_code == 0, told.output
    assert "not counted: the network is not ours" in told.output
    assert "the network that ships" in str(CliRunner().invoke(cli.app, ["bench", "round", str(file)]).exception)


@pytest.mark.parametrize("factory", ["smp:Unet", "torchvision:deeplabv3_mobilenet_v3_large",
                                     "torchvision:lraspp_mobilenet_v3_large"])
def test_networks_by_name(tmp_path, factory, caplog):
    """A round each, with random weights; the layer that is embedded is found."""
    pytest.importorskip("segmentation_models_pytorch")
    arguments = ({"encoder_name": "resnet18", "encoder_weights": None} if factory.startswith("smp") else
                 {"weights": None, "weights_backbone": None})
    with caplog.at_level(logging.INFO, "meal_gpu"):
        directory = run(own_config(tmp_path, factory, model__arguments=arguments, query__rounds=1, train__epochs=1,
                                   train__final_epochs=1, data__context="image"), tmp_path / "run")
    layer = "encoder" if factory.startswith("smp") else "backbone"
    assert f"layer '{layer}' is embedded" in caplog.text
    records = timeless(directory)
    assert len(records[1]["queried"]) == 4
