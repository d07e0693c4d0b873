"""The configuration: what is refused, with which words, and that what is accepted survives a round trip."""

import os
import subprocess
import sys
import typing

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from meal_gpu.config import Config, UmapConfig
from meal_gpu.configfile import shipped
from meal_gpu.errors import InputError

ROOT = {"dataset": "camvid", "root": "/data"}

BAD_VALUES = [
    # what is given                                  what the message must say: the key, the value, what is allowed
    ({"trian": {}}, "Unknown key 'trian'. Did you mean 'train'? Allowed here: device, threads, seeds, data, model"),
    ({"train": {"epoch": 3}}, "Unknown key 'train.epoch'. Did you mean 'epochs'? Allowed here: epochs, final_epochs"),
    ({"data": {"class_nmaes": []}}, "Unknown key 'data.class_nmaes'. Did you mean 'class_names'?"),
    ({"xyzzy": 1}, "Unknown key 'xyzzy'. Allowed here: device"),
    ({1: 2}, "Keys should be strings"),
    # wrong types
    ({"train": {"epochs": "many"}}, "train.epochs is 'many'. Input should be a valid integer"),
    ({"train": {"epochs": 2.5}}, "train.epochs is 2.5. Input should be a valid integer"),
    ({"train": {"epochs": True}}, "train.epochs is True. Input should be a number"),
    ({"train": {"lr": False}}, "train.lr is False. Input should be a number"),
    ({"train": {"lr": [1]}}, "train.lr is [1]. Input should be a valid number"),
    ({"train": 5}, "train is 5. Give keys below it"),
    ({"train": None}, "train is None. Give keys below it"),
    ({"seeds": 3}, "seeds is 3. Input should be a valid list"),
    ({"seeds": [0, "a"]}, "seeds.1 is 'a'. Input should be a valid integer"),
    ({"data": {"image_size": "64x96"}}, "data.image_size is '64x96'. Give two numbers, for example"),
    ({"data": {"image_size": [64]}}, "data.image_size is [64]. Give two numbers, for example"),
    ({"data": {"image_size": [64, 96, 3]}}, "data.image_size is [64, 96, 3]. Tuple should have at most 2 items"),
    ({"data": {**ROOT, "root": 5}}, "data.root is 5. Input is not a valid path"),
    ({"data": {"class_names": "road"}}, "data.class_names is 'road'. Input should be a valid list"),
    ({"model": {"weights": None}}, "model.weights is None. Input should be a valid string"),
    ({"model": {"freeze_backbone": "perhaps"}}, "model.freeze_backbone is 'perhaps'. Input should be a valid boolean"),
    # out of range
    ({"train": {"epochs": 0}}, "train.epochs is 0. Input should be greater than or equal to 1"),
    ({"train": {"batch_size": 1}}, "train.batch_size is 1. Input should be greater than or equal to 2"),
    ({"train": {"lr": 0}}, "train.lr is 0. Input should be greater than 0"),
    ({"train": {"lr": float("nan")}}, "train.lr is nan. Input should be"),
    ({"train": {"lr": float("inf")}}, "train.lr is inf. Input should be a finite number"),
    ({"train": {"lr_decay": 1.5}}, "train.lr_decay is 1.5. Input should be less than or equal to 1"),
    ({"train": {"eval_every": 0}}, "train.eval_every is 0. Input should be greater than or equal to 1"),
    ({"query": {"rounds": -1}}, "query.rounds is -1. Input should be greater than or equal to 0"),
    ({"query": {"n_query": 0}}, "query.n_query is 0. Input should be greater than or equal to 1"),
    ({"data": {"grid": [0, 4]}}, "data.grid.0 is 0. Input should be greater than or equal to 1"),
    ({"data": {"budget_gb": 0}}, "data.budget_gb is 0. Input should be greater than 0"),
    ({"data": {"ignore_index": 256}}, "data.ignore_index is 256. Input should be less than or equal to 255"),
    ({"umap": {"n_neighbors": 1}}, "umap.n_neighbors is 1. Input should be greater than or equal to 2"),
    ({"umap": {"min_dist": 1.1}}, "umap.min_dist is 1.1. Input should be less than or equal to 1"),
    ({"seeds": []}, "seeds is []. List should have at least 1 item"),
    ({"seeds": [0, -1]}, "seeds.1 is -1. Input should be greater than or equal to 0"),
    # not one of the allowed words
    ({"device": "cudaa"}, "device is 'cudaa'. Input should be 'auto', 'cuda' or 'cpu'. Did you mean 'cuda'?"),
    ({"data": {"dataset": "camvd"}}, "Input should be 'camvid', 'cityscapes', 'folder' or 'demo'. Did you mean 'camv"),
    ({"model": {"output_stride": 12}}, "model.output_stride is 12. Input should be 8, 16 or 32"),
    ({"query": {"selector": "kmean"}}, "query.selector is 'kmean'. Input should be 'seeding' or 'kmeans'. Did you"),
    ({"umap": {"metric": "euclidian"}}, "umap.metric is 'euclidian'. Input should be 'euclidean', 'manhattan'"),
    # combinations that cannot be
    ({"query": {"n_query": 300}}, "query.n_informative is 200 and query.n_query is 300"),
    ({"data": {"dataset": "camvid"}}, "data.root is missing: give the directory of the camvid data set"),
    ({"data": {"dataset": "folder", "root": "/x"}}, "data.class_names is missing"),
    ({"data": {"grid": [400, 4]}}, "grid of 400 x 4 does not fit images of 360 x 480 pixels: rows must be 1 to 180"),
    ({"seeds": [1, 2, 1]}, "seeds are [1, 2, 1]: each may stand there once"),
    ({"train": {"sample": "image"}, "data": {"context": "patch"}}, "Use train.sample: patch, or data.context: image"),
    ({"train": {"lr_decay": 0.1}}, "train.lr_decay is 0.1 and train.lr_decay_every is 0"),
    ({"model": {"cache_features": "always", "freeze_backbone": False}}, "Use model.cache_features: auto, or freeze"),
]


@pytest.mark.parametrize(("values", "message"), BAD_VALUES, ids=[str(values)[:50] for values, _ in BAD_VALUES])
def test_bad_values_are_refused_with_what_is_allowed(values, message):
    with pytest.raises(InputError) as error:
        Config.load(values)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_every_mistake_is_named_at_once():
    with pytest.raises(InputError) as error:
        Config.load({"train": {"epochs": 0}, "device": "tpu", "sedes": [1]})
    lines = str(error.value).splitlines()
    assert len(lines) == 3
    assert {line.split()[0] for line in lines} == {"train.epochs", "device", "Unknown"}


def test_overrides_reach_every_depth_and_win():
    config = Config.load({"train": {"epochs": 3, "lr": 0.5}, "seeds": [4]},
                         ["train.epochs=7", "data.grid=[2, 3]", "seeds=[1,2]", "device=cpu", "data.image_size=[64,96]",
                          "query.strategy=random", "train.final_epochs=5", "train.final_epochs=6"])
    assert (config.train.epochs, config.train.lr, config.train.final_epochs) == (7, 0.5, 6)
    assert (config.data.grid, config.data.image_size, config.seeds) == ((2, 3), (64, 96), [1, 2])
    assert (config.device, config.query.strategy) == ("cpu", "random")


def test_yaml_that_reads_a_number_as_text_is_still_a_number():
    """YAML 1.1 takes 1e-3, without a point, for text."""
    assert Config.load({}, ["train.lr=1e-3"]).train.lr == 1e-3


def test_overrides_leave_the_given_dict_alone():
    given_values = {"train": {"epochs": 3}}
    Config.load(given_values, ["train.epochs=7", "query.rounds=1"])
    assert given_values == {"train": {"epochs": 3}}


BAD_OVERRIDES = [
    ("train.epochs", "--set train.epochs: give key=value, for example"),
    ("=3", "--set =3: give key=value"),
    ("", "give key=value"),
    ("train.epochs=[1", "--set train.epochs=[1: '[1' is not a YAML value"),
    ("data.root=2020-13-45", "'2020-13-45' is not a YAML value"),  # looks like a date, and is none
    ("train.epoch=3", "Unknown key 'train.epoch'. Did you mean 'epochs'?"),
    ("train.epochs.more=3", "train.epochs.more=3"),
    ("train..epochs=3", "Unknown key 'train."),
    ("seeds.0=3", "--set seeds.0=3: seeds is [0] and has no keys below it"),
    ("train=", "train is None. Give keys below it"),
]


@pytest.mark.parametrize(("override", "message"), BAD_OVERRIDES)
def test_bad_overrides_are_refused(override, message):
    with pytest.raises(InputError) as error:
        Config.load({"seeds": [0], "train": {"epochs": 3}}, [override])
    assert message in str(error.value)


def test_an_override_does_not_hide_a_mistake_in_the_file():
    with pytest.raises(InputError, match="train is 5 and has no keys below it"):
        Config.load({"train": 5}, ["train.epochs=3"])


BAD_FILES = [
    (b"train: [1", "is not valid YAML: while parsing"),
    (b"a: b: c", "is not valid YAML"),
    (b"- 1\n- 2", "holds list, not keys"),
    (b"hello", "holds str, not keys"),
    (b"seeds: 2020-13-45", "is not valid YAML"),
    (b"\xff\xfe\x00", "cannot be read"),
    (b"? [a]\n: b", "is not valid YAML"),
    (b"train: {epochs: 0}", "train.epochs is 0"),
]


@pytest.mark.parametrize(("content", "message"), BAD_FILES)
def test_bad_files_are_refused_by_name(tmp_path, content, message):
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    with pytest.raises(InputError) as error:
        Config.load(file)
    assert message in str(error.value)
    assert str(file) in str(error.value)


def test_an_empty_file_is_all_defaults(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("# nothing yet\n")
    assert Config.load(file) == Config()


@pytest.mark.parametrize(("name", "hint"), [("camvd", "Did you mean 'camvid'?"), ("no/where/demmo.yaml", "'demo'?"),
                                            ("xyzzy.yaml", "Shipped: camvid, ")])
def test_a_missing_file_is_named_with_the_nearest_shipped_one(name, hint):
    with pytest.raises(InputError) as error:
        Config.load(name)
    assert f"No config file '{name}'" in str(error.value)
    assert hint in str(error.value)
    assert ("Did you mean" in str(error.value)) == (name != "xyzzy.yaml")


def test_a_file_of_the_users_goes_before_a_shipped_one(tmp_path, monkeypatch):
    (tmp_path / "demo").write_text("seeds: [42]")
    monkeypatch.chdir(tmp_path)
    assert Config.load("demo").seeds == [42]
    assert Config.load("demo.yaml").seeds == [0]


def test_the_shipped_configs_load_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = shipped()
    assert {"demo", "camvid", "camvid_finetune", "cityscapes", "cityscapes_large_init"} <= set(names)
    for name in names:
        assert Config.load(name) == Config.load(f"configs/{name}.yaml")


def test_the_papers_settings():
    """Section 4: 32 patches to about 5 % of CamVid and 1 % of Cityscapes, N_I = 200, Adam 1e-3, 25 epochs."""
    for name, n_images, budget in [("camvid", 367, 288), ("camvid_finetune", 367, 288), ("cityscapes", 2975, 480),
                                   ("cityscapes_large_init", 2975, 470)]:
        config = Config.load(name)
        query, train = config.query, config.train
        assert query.n_initial_images * config.data.tiling().cells + query.rounds * query.n_query == budget
        assert budget / (n_images * config.data.tiling().cells) == pytest.approx(0.05 if n_images == 367 else 0.01,
                                                                               rel=0.03)
        assert (query.n_informative, query.strategy) == (200, "meal")
        assert (train.epochs, train.final_epochs, train.batch_size, train.lr, train.lr_decay) == (25, 32, 8, 1e-3, 1.0)
    full = Config.load("camvid_supervised").train
    assert (full.final_epochs, full.batch_size, full.lr, full.lr_decay, full.lr_decay_every) == (60, 2, 8e-4, 0.1, 20)


def test_the_modern_recipe_asks_for_as_much_as_the_paper():
    """And differs from the paper's config in its training and queries alone."""
    paper, modern = Config.load("camvid"), Config.load("camvid_modern")
    assert modern.data == paper.data
    assert modern.model == paper.model
    for key in ("n_initial_images", "rounds", "n_query"):
        assert getattr(modern.query, key) == getattr(paper.query, key)
    assert modern.train.changes_images
    assert not paper.train.changes_images


@given(st.builds(dict, device=st.sampled_from(["auto", "cpu"]),
                 seeds=st.lists(st.integers(0, 10**12), min_size=1, max_size=4, unique=True),
                 lr=st.floats(1e-300, 1e300), min_dist=st.floats(0, 1), n_query=st.integers(1, 50),
                 root=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=10),
                 names=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), min_size=1, max_size=3),
                 budget=st.none() | st.floats(1e-6, 1e6)))
def test_dump_and_load_give_an_equal_config(values):
    config = Config.load({
        "device": values["device"], "seeds": values["seeds"], "train": {"lr": values["lr"]},
        "umap": {"min_dist": values["min_dist"]}, "query": {"n_query": values["n_query"]},
        "data": {"dataset": "folder", "root": values["root"], "class_names": values["names"],
                 "budget_gb": values["budget"]}})
    assert Config.load(yaml.safe_load(config.dump())) == config


def test_a_dumped_file_holds_every_key(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(Config.load("cityscapes").dump())
    assert Config.load(file) == Config.load("cityscapes")
    for section, model in Config.model_fields.items():
        assert f"{section}:" in file.read_text()
        for key in getattr(model.annotation, "model_fields", {}):
            assert f"  {key}:" in file.read_text()


def test_a_config_cannot_be_changed():
    config = Config()
    with pytest.raises(ValueError, match="frozen"):
        config.train.epochs = 3


def test_a_config_is_read_as_utf8_whatever_the_locale(tmp_path):
    """The shipped configs say Φ."""
    file = tmp_path / "mine.yaml"
    file.write_bytes("data: {dataset: folder, root: /x, class_names: [Straße, Φ]}".encode())
    program = f"from meal_gpu.config import Config; print(ascii(Config.load({str(file)!r}).data.class_names))"
    out = subprocess.run([sys.executable, "-X", "utf8=0", "-c", program], check=True, capture_output=True, text=True,
                         env={**os.environ, "LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0"})
    assert out.stdout.strip() == ascii(["Straße", "Φ"])


def test_every_allowed_metric_exists():
    """The names are written down in the config because importing umap takes seconds."""
    from umap.distances import named_distances

    assert set(typing.get_args(UmapConfig.model_fields["metric"].annotation)) <= set(named_distances)


# --- what people write in YAML ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "message"), [
    ("train: {epochs: 3}\ndata:\n  root: /x\ntrain:\n  lr: 0.1\n", "'train' stands in line 1 and again in line 4"),
    ("data:\n  root: /x\n  grid: [2, 2]\n  root: /y\n", "'root' stands in line 2 and again in line 4"),
])
def test_a_key_that_stands_twice_is_refused_with_its_lines(text, message, tmp_path):
    """The first block was lost without a word."""
    file = tmp_path / "twice.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        Config.load(file)


def test_merged_keys_of_yaml_may_be_given_again(tmp_path):
    file = tmp_path / "merged.yaml"
    file.write_text("train: &base {epochs: 3, lr: 0.1}\nquery: {rounds: 1}\n")
    assert Config.load(file).train.epochs == 3


@pytest.mark.parametrize(("names", "message"), [
    ("[road, yes]", 'data.class_names.1 is True: YAML reads yes, no, on, off, true and false as true. Quote it'),
    ("[no, road]", "Quote it"), ("[road, ~]", "no value. Quote it"), ("[road, 7]", 'Quote it, for example - "7"'),
    ("{road: [1, 2, 3], no: [4, 5, 6]}", 'quote a class of that name: "no"'),
    ("{road: [1, 2]}", "Give a colour as [red, green, blue]"),
])
def test_class_names_that_yaml_reads_as_something_else(names, message, tmp_path):
    file = tmp_path / "names.yaml"
    file.write_text(f"data: {{dataset: folder, root: /x, class_names: {names}}}\n")
    with pytest.raises(InputError) as error:
        Config.load(file)
    assert message in str(error.value)


def test_tables_survive_being_written_and_read_again(tmp_path):
    file = tmp_path / "again.yaml"
    config = Config.load({"data": {"dataset": "folder", "root": "/x", "class_names": {"road": [1, 2, 3]},
                                   "mask_values": {"road": 7, "void": [0, 255]}}})
    assert config.data.class_names == ["road"]
    assert config.data.mask_values == {"road": [7], "void": [0, 255]}
    file.write_text(config.dump())
    assert Config.load(file) == config


# --- texts that would take more memory, or more of the stack, than any config needs ----------------------------------


def aliases(levels: int, key: str) -> str:
    """Nine values in each level, each of which is the level below: nine to the power of the levels."""
    lines = ["a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join([*lines, f"{key}: *a{levels - 1}"])


@pytest.mark.parametrize("key", ["seeds", "train", "unknown"])
def test_aliases_that_stand_for_millions_are_refused(tmp_path, key):
    file = tmp_path / "bomb.yaml"
    file.write_text(aliases(9, key))
    with pytest.raises(InputError, match=r"bomb\.yaml is not valid YAML: its aliases .* stand for [\d,]+ values"):
        Config.load(file)


def test_aliases_as_people_use_them_are_read(tmp_path):
    file = tmp_path / "plain.yaml"
    file.write_text("seeds: &s [0, 1]\ntrain: &t {epochs: 2}\nquery: {n_query: 8}\n")
    assert Config.load(file).train.epochs == 2
    with pytest.raises(InputError, match="--set train="):
        Config.load({}, [f"train={{a: &a [1], b: {'[' * 20_000}"])


@pytest.mark.parametrize("text", ["[" * 20_000, "seeds: " + "[" * 20_000 + "]" * 20_000, "- " * 20_000 + "1",
                                  "\n".join(" " * i + "a:" for i in range(1_000))])
def test_deep_nesting_is_refused(tmp_path, text):
    file = tmp_path / "deep.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=r"deep\.yaml is not valid YAML: it is nested"):
        Config.load(file)


def test_a_long_value_is_shown_in_part():
    with pytest.raises(InputError) as caught:
        Config.load({"train": {"epochs": "9" * 100_000}})
    assert len(str(caught.value)) < 1_000


@pytest.mark.parametrize(("values", "expected"), [
    ({"image_size": [10**8, 10**8]}, "data.max_megapixels is 500"), ({"image_size": [1, 10**9]}, "max_megapixels"),
    ({"n_images": 10**9}, "n_images"), ({"n_val_images": 10**12}, "n_val_images"),
])
def test_sizes_that_no_machine_holds_are_refused(values, expected):
    with pytest.raises(InputError, match=expected):
        Config.load({"data": values})
    if "image_size" in values:
        Config.load({"data": {"image_size": [30_000, 30_000], "max_megapixels": 1_000}})


@pytest.mark.parametrize("what", ["fifo", "device", "large"])
def test_a_config_is_a_regular_file_of_a_config_s_size(tmp_path, what):
    file = tmp_path / "c.yaml"
    if what == "fifo":
        os.mkfifo(file)
    elif what == "device":
        file.symlink_to("/dev/zero")
    else:
        file.write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(InputError, match=r"c\.yaml (is a named pipe|is a device|has 1,048,577 bytes)"):
        Config.load(file)
