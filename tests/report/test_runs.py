"""Run directories that are not one, are not finished, or are damaged."""

import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest
from fake_run import small

from meal_gpu.errors import InputError
from meal_gpu.report import load_run, notes, write_report


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_run(path)
    return str(caught.value)


def test_not_a_run_directory(tmp_path):
    assert "no such directory" in refused(tmp_path / "nothing")
    message = refused(tmp_path)
    assert "not a run directory" in message
    assert all(name in message for name in ("config.yaml", "environment.json", "rounds.jsonl"))


def test_nothing_finished(tmp_path):
    message = refused(small(tmp_path / "run", seeds=(0,), done={0: 0}))
    assert "no finished round yet" in message
    assert "--resume" in message


@pytest.mark.parametrize(("name", "content", "expected"), [
    ("config.yaml", b"", "lacks device, seeds, data, model, train, query, umap"),
    ("config.yaml", b"query: {strateggy: meal}", "lacks device"),
    ("config.yaml", b"device: cpu\nseeds: [0]\ndata: {}\nmodel: {}\ntrain: {}\nquery: {strateggy: meal}\numap: {}",
     "Did you mean 'strategy'?"),
    ("config.yaml", b"\xff\xfe\x00", "config.yaml"),
    ("seed-0/rounds.jsonl", b'{"round": 0}\n', "line 1 is damaged: n_labelled: field required"),
    ("seed-0/rounds.jsonl", b"garbage\n{}\n", "damaged in line 1"),
    ("seed-0/rounds.jsonl", b"[" * 100_000 + b"\n", "damaged in line 1 (it is nested too deeply)"),
    ("seed-0/rounds.jsonl", b'{"round": 1, "n_labelled": 1, "fraction": 0.1}\n', "holds the rounds [1], not 0, 1, 2"),
    ("seed-0/rounds.jsonl",
     b'{"round": 0, "n_labelled": 1, "fraction": 0.1, "queried": [{"id": 20, "image": "", "row": 0, "col": 0}]}\n',
     "line 1 is damaged: row 0 is not that of id 20, 1"),
    ("seed-0/rounds.jsonl",
     b'{"round": 0, "n_labelled": 1, "fraction": 0.1, "queried": [{"id": 320, "image": "", "row": 0, "col": 0}]}\n',
     "names patch 320"),
])
def test_damaged_files_are_named(tmp_path, name, content, expected):
    path = small(tmp_path / "run", seeds=(0,))
    if content is None:
        (path / name).unlink()
    else:
        (path / name).write_bytes(content)
    message = refused(path)
    assert name in message
    assert expected in message


@pytest.mark.parametrize(("content", "expected"), [
    (b"", "damaged"), (b"{", "damaged"), (b"\xff\xfe", "damaged"), (b"[" * 100_000, "nested too deeply"),
    (b'{"dataset": {}}', "dataset.name: field required"), (b"[]", "not what a run writes"), (None, "No such file"),
])
def test_a_report_does_without_the_environment(tmp_path, caplog, content, expected):
    path = small(tmp_path / "run", seeds=(0,))
    whole = load_run(path)
    if content is None:
        (path / "environment.json").unlink()
    else:
        (path / "environment.json").write_bytes(content)
    run = load_run(path)
    [line] = [record.message for record in caplog.records if "leaves out the machine" in record.message]
    assert "environment.json" in line
    assert expected in line
    assert run.seeds == whole.seeds
    assert (run.dataset.n_patches, run.dataset.class_names) == (whole.dataset.n_patches, whole.dataset.class_names)
    assert "<html" in write_report([run], tmp_path / "r.html").read_text()
    assert not any("no validation images" in note for note in notes([run]))


def bomb(file: Path) -> None:
    """Three gigabytes of zeros in three megabytes."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive, archive.open(
            "image.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": (64 << 20,)})
        member.write(bytes(64 << 20))
    for at in (b"PK\x01\x02", ):  # what its directory says, without the hour that three gigabytes take
        content = bytearray(file.read_bytes())
        i = content.rindex(at)
        content[i + 24 : i + 28] = (3 << 30).to_bytes(4, "little")
        file.write_bytes(content)


@pytest.mark.parametrize("damage", ["cut", "another run's", "a directory", "a link", "empty", "nan", "pickled", "bomb",
                                    "shape"])
@pytest.mark.parametrize("name", ["embedding.npz", "gallery/round-01.npz"])
def test_a_report_leaves_out_what_is_damaged(tmp_path, caplog, name, damage):
    path = small(tmp_path / "run", seeds=(0,))
    archive = path / "seed-0" / name
    whole = archive.read_bytes()
    arrays = dict(np.load(archive))
    if damage == "cut":
        archive.write_bytes(whole[:len(whole) // 2])
    elif damage == "another run's":
        archive.write_bytes((small(tmp_path / "other", seeds=(1,), n_images=30) / "seed-1" / name).read_bytes())
    elif damage == "a directory":
        archive.unlink()
        archive.mkdir()
    elif damage == "a link":
        archive.rename(tmp_path / "there")
        archive.symlink_to(tmp_path / "there")
    elif damage == "empty":
        archive.write_bytes(b"")
    elif damage == "nan":
        key = next(key for key in arrays if arrays[key].dtype.kind == "f")
        arrays[key] = np.full(arrays[key].shape[:1], np.nan)
        np.savez(archive, **arrays)
    elif damage == "pickled":
        np.savez(archive, **{key: value.astype(object) for key, value in arrays.items()})
    elif damage == "bomb":
        bomb(archive)
    elif damage == "shape":
        np.savez(archive, points=np.zeros((3, 2)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    write_report([load_run(path)], tmp_path / "r.html")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000, "kilobytes"
    lines = [record.message for record in caplog.records if "The report leaves it out." in record.message]
    assert [line.split()[0] for line in lines] == [str(archive)]


def test_report_that_cannot_be_written(tmp_path):
    run = load_run(small(tmp_path / "run", seeds=(0,), gallery=False))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written to .*file.r\.html: File exists"):
        write_report([run], tmp_path / "file" / "r.html")


def test_report_makes_its_directory(tmp_path):
    run = load_run(small(tmp_path / "run", seeds=(0,), gallery=False))
    assert write_report([run], tmp_path / "new" / "r.html").is_file()


def test_report_replaces_the_old_one_and_leaves_nothing_else(tmp_path):
    run = load_run(small(tmp_path / "run", seeds=(0,), gallery=False))
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.html").write_text("old")
    assert write_report([run], out) == out / "report.html"
    assert [entry.name for entry in out.iterdir()] == ["report.html"]
    assert (out / "report.html").read_text().startswith("<!DOCTYPE html>")
