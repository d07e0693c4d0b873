"""Where workers come from, and what is said where there are none."""

import io
import sys

import distributed
import pytest
import torch
from tiny import tiny_config

from meal_gpu.engine.experiment import prepare
from meal_gpu.errors import InputError
from meal_gpu.sharding import cluster


def test_where_workers_come_from(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT_S", 0.5)

    def config(where):
        return tiny_config(tmp_path, **{"query.scoring": "sharded", "query.workers": where})

    if not torch.cuda.is_available():
        with pytest.raises(InputError, match=r"no CUDA device is usable here"):
            prepare(config("cuda"))
    with pytest.raises(InputError, match=r"No Dask scheduler answers at tcp://127.0.0.1:9"):
        prepare(config("tcp://127.0.0.1:9"))
    with (distributed.LocalCluster(n_workers=0, processes=False, protocol="tcp", dashboard_address=None) as empty,
          pytest.raises(InputError, match=r"The scheduler tcp://.* has no workers")):
        prepare(config(empty.scheduler_address))
    assert not list(tmp_path.rglob("images.u8"))  # before long work
    for wrong in (0, -1, "many", True, 1.5):
        with pytest.raises(InputError, match=r"query.workers is .*Give a number of processes"):
            config(wrong)
    with pytest.raises(InputError, match=r"query.workers is 2 and query.scoring is 'local'"):
        tiny_config(tmp_path, **{"query.workers": 2})


def test_the_command_line_names_one_place(tmp_path, monkeypatch):
    from meal_gpu import cli

    def call(*words):
        shown = io.StringIO()
        monkeypatch.setattr(cli, "errors", cli.Console(file=shown))
        monkeypatch.setattr(sys, "argv", ["meal-gpu", "run", "demo", "--out", str(tmp_path / "run"), *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, shown.getvalue()

    if not torch.cuda.is_available():
        code, text = call("--cuda")
        assert code == 2
        assert text.startswith("error --cuda: no CUDA device is usable here")
        assert text.count("\n") == 1
    code, text = call("--cuda", "--workers", "2")
    assert code == 2
    assert "give one of them" in text
    assert not (tmp_path / "run").exists()
