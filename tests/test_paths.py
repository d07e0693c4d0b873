"""``~`` wherever a path is taken, and where things are kept on machines without a home directory."""

import inspect
import logging
import os
import shutil
from pathlib import Path

import pytest
import typer
from fake_run import write_run
from tiny import tiny_config

import meal_gpu
from meal_gpu import cli, launch, paths
from meal_gpu.bench import commands
from meal_gpu.config import Config, DataConfig, ModelConfig
from meal_gpu.data.datasets import cache_dir, open_dataset
from meal_gpu.errors import InputError
from meal_gpu.network.backbone import create_backbone
from meal_gpu.paths import expand, may_write, settle_home, user_cache
from meal_gpu.sweepfile import load_points


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(paths, "_told", set())
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def nobody(monkeypatch) -> None:
    """No HOME, and a user that no list knows."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(paths, "_told", set())
    monkeypatch.setattr(os, "getuid", lambda: 54321)


def test_a_home_is_put_in_its_place(home, monkeypatch):
    assert expand("~/a") == home / "a"
    assert expand("a/~") == Path("a/~")
    with pytest.raises(InputError, match=r"'~nobody-of-that-name/x' begins with ~"):
        expand("~nobody-of-that-name/x")
    nobody(monkeypatch)
    with pytest.raises(InputError, match=r"there is no such home directory here .*Give the whole path"):
        expand("~/a")


def takes_paths(app: typer.Typer):
    """(command, parameter, its annotation) of everything that a command line takes as a path."""
    for command in app.registered_commands:
        assert command.callback is not None
        for name, parameter in inspect.signature(command.callback, eval_str=True).parameters.items():
            if "Path" in str(parameter.annotation):
                yield command.callback.__name__, name, parameter.annotation.__metadata__[0]


@pytest.mark.parametrize("app", [cli.app, commands.app], ids=["meal-gpu", "meal-gpu bench"])
def test_every_option_that_takes_a_path(app):
    found = list(takes_paths(app))
    assert len(found) >= 8
    assert [(command, name) for command, name, option in found if option.parser is not expand] == []


def test_every_key_of_a_config_that_takes_a_path(home, make_folder):
    made = make_folder(n=2)
    for part in made.iterdir():
        shutil.copytree(part, home / "pictures" / part.name)
    data = DataConfig(dataset="folder", root=Path("~/pictures"), store=Path("~/store"), class_names=["a", "b", "c"],
                      images="~/pictures/images", masks="~/pictures/masks", val_images="~/pictures/val_images",
                      val_masks="~/pictures/val_masks")
    assert open_dataset(data).train[0].image.parent == home / "pictures" / "images"
    assert open_dataset(data).val[0].mask.parent == home / "pictures" / "val_masks"
    assert cache_dir(data) == home / "store"
    demo = DataConfig(dataset="demo", root=Path("~/drawn"), n_images=1, n_val_images=1, image_size=(48, 64))
    assert home / "drawn" in open_dataset(demo).train[0].image.parents
    (home / "x.pt").write_bytes(b"")
    with pytest.raises(InputError, match=r"model\.weights is '~/x\.pt', a pickle"):
        create_backbone(ModelConfig(weights="~/x.pt"))
    with pytest.raises(InputError, match=r"data\.images is '.*\*\*/\*\.png', and a pattern is one below data"):
        open_dataset(data.model_copy(update={"images": "~/pictures/**/*.png"}))
    keys = {f"data.{name}" for name, field in DataConfig.model_fields.items() if "Path" in str(field.annotation)}
    assert keys == {"data.root", "data.store"}, "another key takes a path: let it expand ~, and add it here"


def test_config_files_and_directories(home, tmp_path):
    config = tiny_config(tmp_path)
    (home / "tiny.yaml").write_text(config.dump())
    assert Config.load("~/tiny.yaml") == config
    (home / "sweep.yaml").write_text("base: ~/tiny.yaml\naxes: {train.lr: [0.1, 0.2]}\n")
    assert len(load_points("~/sweep.yaml")) == 2
    with pytest.raises(InputError, match=rf"{home}/runs holds no run"):
        launch.resume("~/runs")
    with pytest.raises(InputError, match=rf"{home}/runs' is not a run directory"):
        meal_gpu.load_run("~/runs")
    write_run(home / "run")
    assert meal_gpu.load_run("~/run").path == home / "run"
    with pytest.raises(InputError, match=rf"{home}/run already holds a run"):
        launch.run(config, "~/run")


def test_the_cache_without_a_home(home, monkeypatch, tmp_path, caplog):
    caplog.set_level(logging.INFO, "meal_gpu")
    assert user_cache() == home / ".cache" / "meal-gpu"
    assert not (home / ".cache").exists()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "chosen"))
    assert user_cache() == tmp_path / "chosen" / "meal-gpu"
    assert caplog.messages == []
    nobody(monkeypatch)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(os, "getuid", lambda: os.stat(tmp_path).st_uid)
    monkeypatch.setattr(paths, "home_directory", lambda: None)
    for _ in range(2):
        assert user_cache() == tmp_path / f"meal-gpu-{os.stat(tmp_path).st_uid}" / "cache"
    [line] = caplog.messages
    assert "there is no home directory. XDG_CACHE_HOME names another place" in line


def test_a_home_is_given_where_there_is_none(home, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    settle_home()
    assert os.environ["HOME"] == str(home)
    monkeypatch.setattr(paths, "home_directory", lambda: None)
    settle_home()
    assert Path(os.environ["HOME"]).is_relative_to(tmp_path / f"meal-gpu-{os.getuid()}")
    assert "HOME names another" in caplog.text
    monkeypatch.undo()


def test_a_home_that_cannot_be_written(home, monkeypatch, tmp_path, caplog):
    caplog.set_level(logging.INFO, "meal_gpu")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("HOME", "/proc/self")
    assert tmp_path in user_cache().parents
    assert "/proc/self cannot be written" in caplog.text
    assert not may_write(Path("/proc/self/x/y"))
    assert may_write(tmp_path / "x" / "y")
    (tmp_path / "file").write_text("")
    assert not may_write(tmp_path / "file" / "x")
    monkeypatch.setattr("tempfile.tempdir", "/proc/self")
    with pytest.raises(InputError, match=r"Nothing can be kept: .* Set XDG_CACHE_HOME or data\.store"):
        user_cache()
