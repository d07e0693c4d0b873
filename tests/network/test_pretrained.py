"""ImageNet's weights: those that are kept are used without a network, and one that is missing is soon told of."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from meal_gpu.config import ModelConfig
from meal_gpu.errors import InputError
from meal_gpu.network import pretrained
from meal_gpu.network.backbone import create_backbone

BACKBONE = "mobilenetv2_050"


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty place of the Hub's files, and no network at all."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def refuse(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tmp_path / "hub"


def keep(hub: Path, name: str) -> dict[str, torch.Tensor]:
    """Put weights where the Hub's client keeps them."""
    source = pretrained.Source.of(BACKBONE)
    assert source is not None
    folder = hub / f"models--{source.repository.replace('/', '--')}"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    torch.manual_seed(7)
    weights = timm.create_model(BACKBONE).state_dict()
    if name.endswith(".safetensors"):
        save_file(weights, folder / "snapshots" / "abc" / name)
    else:
        torch.save(weights, folder / "snapshots" / "abc" / name)
    return weights


@pytest.mark.parametrize("name", pretrained.NAMES)
def test_weights_that_are_kept_need_no_network(hub, name):
    weights = keep(hub, name)
    backbone = create_backbone(ModelConfig(backbone=BACKBONE))
    found = backbone.state_dict()
    assert len(found) > 100
    assert all(torch.equal(value, weights[key]) for key, value in found.items())


def test_without_a_network_the_file_to_give_is_named(hub):
    with pytest.raises(InputError) as refused:
        create_backbone(ModelConfig(backbone=BACKBONE))
    message = str(refused.value)
    for part in ("model.weights is 'imagenet'", BACKBONE, "huggingface.co cannot be reached (",
                 "https://huggingface.co/timm/mobilenetv2_050.lamb_in1k/resolve/main/model.safetensors",
                 "--set model.weights=FILE"):
        assert part in message


def test_a_name_that_is_looked_up_for_ever(hub, monkeypatch):
    monkeypatch.setattr(pretrained, "ANSWERS_S", 0.1)

    def slow(*_: object, **__: object) -> None:
        time.sleep(2)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    with pytest.raises(InputError, match=r"huggingface\.co is not found within"):
        create_backbone(ModelConfig(backbone=BACKBONE))


def test_a_backbone_that_timm_has_no_weights_of_is_as_before(hub):
    assert pretrained.Source.of("mobilenetv2_035") is None
    with pytest.raises(InputError, match="mobilenetv2_035"):
        create_backbone(ModelConfig(backbone="mobilenetv2_035"))


def test_a_process_that_is_cut_off(tmp_path):
    """The whole command in a network of its own, which has no way out."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-n", "true"], check=False,
                                                         capture_output=True).returncode:
        pytest.skip("unshare -n is not allowed here")
    command = ["unshare", "-n", sys.executable, "-m", "meal_gpu.cli", "run", "demo", "--set",
               f"data.store={tmp_path}", "--set", "data.n_images=4", "--set", "query.rounds=1", "--set",
               "query.n_query=8", "--set", "query.n_informative=8", "--set", "model.weights=imagenet", "--set",
               f"model.backbone={BACKBONE}", "--out", str(tmp_path / "run")]
    cut = subprocess.run(command, capture_output=True, text=True, check=False,
                         env={**os.environ, "HF_HOME": str(tmp_path / "hf")})
    assert cut.returncode == 2, cut.stderr
    assert "Traceback" not in cut.stderr
    assert "--set model.weights=FILE" in cut.stderr
    assert "Retrying" not in cut.stderr
    assert not (tmp_path / "run").exists()
