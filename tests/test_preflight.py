"""`meal-gpu info CONFIG`: all that is wrong in one go, and nothing stays."""

import os
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import distributed
import pytest
from tiny import tiny_config

from meal_gpu import cli, locks, preflight
from meal_gpu.config import Config
from meal_gpu.data.ingest import ingest
from meal_gpu.errors import InputError
from meal_gpu.network import pretrained
from meal_gpu.sharding import cluster


def everything(folder: Path) -> list[tuple[Path, int]]:
    return [(path, path.lstat().st_mtime_ns) for path in sorted(folder.rglob("*"))]


def test_what_could_start(tmp_path, make_folder):
    root = make_folder(size=(64, 96))
    config = tiny_config(tmp_path, **{"data.dataset": "folder", "data.root": str(root),
                                      "data.class_names": ["a", "b", "c"], "query.rounds": 1})
    before = everything(root.parent)
    found = preflight.preflight(config, tmp_path / "deep" / "run")
    assert found.wrong == {}
    assert everything(root.parent) == before
    assert found.fine["data"].startswith("12 files listed")
    assert "to write, " in found.fine["store"]
    assert found.fine["store"].endswith("locked by the file system")
    assert str(tmp_path / "deep" / "run") in found.fine["run directory"]
    assert found.fine["weights"] == "none: random ones"
    assert " needed at the peak, " in found.fine["memory"]
    assert {"device", "pool", "  decode", "cpu"} <= {key for table in found.tables for key in table}


def test_what_changed_in_the_pool_is_said(tmp_path, make_folder):
    root = make_folder(size=(64, 96))
    config = tiny_config(tmp_path, **{"data.dataset": "folder", "data.root": str(root),
                                      "data.class_names": ["a", "b", "c"], "query.rounds": 1})
    ingest(config.data)
    assert "Since" not in preflight.preflight(config, tmp_path / "run").fine["data"]
    for folder in ("images", "masks"):
        shutil.copy(root / folder / "img0.png", root / folder / "new.png")
    said = preflight.preflight(config, tmp_path / "run").fine["data"]
    assert "Since the store was built: " in said
    assert "new" in said


def test_all_that_is_wrong_is_said_at_once(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(cluster, "CONNECT_S", 0.2)
    config = tiny_config(tmp_path, **{
        "query.strategy": "maal", "data.dataset": "camvid", "data.root": str(tmp_path / "nowhere"),
        "data.store": str(tmp_path / "file" / "store"), "model.weights": "/nowhere.safetensors",
        "query.scoring": "sharded", "query.workers": "tcp://127.0.0.1:9", "umap.backend": "cuml"})
    wrong = preflight.preflight(config, tmp_path / "file").wrong
    for name, words in (("strategy", "Did you mean 'meal'?"), ("device", "umap.backend is 'cuml'"),
                        ("data", str(tmp_path / "nowhere")), ("store", "Set data.store to a directory that can"),
                        ("run directory", "is no directory: give another --out"), ("weights", "there is no such file"),
                        ("workers", "No Dask scheduler answers at tcp://127.0.0.1:9")):
        assert words in wrong.pop(name)
    assert wrong == {}


def test_too_little_memory_and_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "free_bytes", lambda device: 10**6)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 1000))
    found = preflight.preflight(tiny_config(tmp_path, **{"query.n_initial_images": 6}), tmp_path / "run")
    assert "at its peak, and 1 MB are free. Use data.placement" in found.wrong["memory"]
    assert "are free. Free some, or give another data.store" in found.wrong["store"]
    assert "are free. Free some, or give another --out" in found.wrong["run directory"]
    assert "Lower query.rounds" in found.wrong["data"]
    assert set(found.wrong) == {"memory", "store", "run directory", "data"}


def test_parts(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("")
    with pytest.raises(InputError, match="already holds a run"):
        preflight._directory(tmp_path / "run", None)
    with pytest.raises(InputError, match="cannot be written: give another --out"):
        preflight._directory(Path("/proc/self/x"), None)

    def refuse(directory: Path) -> str:
        raise InputError(f"{directory} cannot be locked")

    with monkeypatch.context() as patch:
        patch.setattr(locks, "kind", refuse)
        found = preflight.Findings()
        found.tried("store", lambda: preflight._store(tiny_config(tmp_path), None, None, False))
        found.tried("disk", lambda: os.listdir(tmp_path / "nowhere"))
        assert found.wrong == {"store": f"{tmp_path} cannot be locked",
                               "disk": f"{tmp_path / 'nowhere'}: No such file or directory"}
    monkeypatch.setattr(pretrained, "find", lambda source: None)
    config = Config.load({"model": {"backbone": "resnet18"}})
    monkeypatch.setattr(pretrained, "unreachable", lambda url: None)
    assert "can be reached" in preflight._weights(config)
    monkeypatch.setattr(pretrained, "unreachable", lambda url: "nobody answers")
    with pytest.raises(InputError, match=r"nobody answers\. Fetch https://.* --set model\.weights=FILE"):
        preflight._weights(config)
    monkeypatch.setattr(pretrained, "find", lambda source: tmp_path / "kept")
    assert preflight._weights(config) == str(tmp_path / "kept")


def test_files_that_may_not_be_read(tmp_path, make_folder, monkeypatch):
    root = make_folder(size=(64, 96))
    config = tiny_config(tmp_path, **{"data.dataset": "folder", "data.root": str(root),
                                      "data.class_names": ["a", "b", "c"]})
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode, **how: "img2" not in str(path) and allowed(path, mode))
    monkeypatch.setattr(os, "supports_effective_ids", set())
    dataset = preflight.open_dataset(config.data)
    with pytest.raises(InputError, match=r"img2\.png cannot be read, nor can 1 more of 12 files: let this user"):
        preflight._data(config.revised("query", rounds=0), dataset, None)


def test_workers(tmp_path):
    config = tiny_config(tmp_path, **{"query.scoring": "sharded", "query.workers": 2})
    assert preflight._workers(config) == "processes of this machine"
    with pytest.raises(InputError, match="no CUDA device"):
        preflight._workers(config.revised("query", workers="cuda"))
    with distributed.LocalCluster(n_workers=0, processes=False, protocol="tcp", dashboard_address=None) as empty:
        address = config.revised("query", workers=empty.scheduler_address)
        with pytest.raises(InputError, match="has no workers yet"):
            preflight._workers(address)
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, protocol="tcp",
                                  dashboard_address=None) as one:
        where = one.scheduler_address
        assert preflight._workers(config.revised("query", workers=where)) == f"1 at {where}"


@pytest.mark.parametrize("wrong", [{}, {"weights": "there are [none]", "store": "full"}])
def test_the_command(tmp_path, monkeypatch, capsys, wrong):
    config = tmp_path / "tiny.yaml"
    config.write_text(tiny_config(tmp_path).dump())
    monkeypatch.setattr(preflight, "preflight", lambda config, out: preflight.Findings({"data": str(out)}, wrong))
    monkeypatch.setattr(sys, "argv", ["meal-gpu", "info", str(config), "--out", "there", "--set", "seeds=[1]"])
    stopped = 0
    try:
        cli.main()
    except SystemExit as stop:
        stopped = int(stop.code or 0)
    streams = capsys.readouterr()
    assert stopped == (2 if wrong else 0)
    assert streams.out.split()[:2] == ["data", "there"]
    assert ("ready: meal-gpu run" in streams.out) != bool(wrong)
    assert (f"ready: meal-gpu run {config} --out there --set 'seeds=[1]'" in streams.out) != bool(wrong)
    if wrong:
        assert streams.err.splitlines()[-3:] == ["error This run cannot start here:", "  weights: there are [none]",
                                                 "  store: full"]
