"""What is wrong with labels is said in one sentence, with exit code 2, and nothing is written."""

import io
import json
import os
import struct
import zipfile
import zlib

import numpy as np
import pytest
from annotators import (
    coco,
    cvat_xml,
    index_folder,
    label_studio,
    png,
    segmentation_masks,
)
from PIL import Image

from meal_gpu.journal import read_journal
from meal_gpu.records import accept_changes


@pytest.fixture
def refused(waiting):
    def check(path, *words) -> str:
        before = waiting.files()
        code, said = waiting.add(path, *words)
        assert code == 2, said
        assert waiting.files() == before
        assert "Traceback" not in said
        assert said.strip().endswith((".", "?"))
        return said

    return check


@pytest.fixture
def tasks(waiting, tmp_path):
    """An export of Label Studio, to be spoilt."""
    return json.loads(label_studio(waiting.folder, waiting.truth, tmp_path).read_text())


def export(tmp_path, held):
    (tmp_path / "export.json").write_text(json.dumps(held))
    return tmp_path / "export.json"


def region(tasks, n=0):
    """The first brush region of a task."""
    return tasks[n]["annotations"][0]["result"][1]


LABEL_STUDIO = {
    # 1: a class that query.json does not have
    "class": (lambda t: region(t)["value"].update(brushlabels=["raod"]), "the class 'raod', which query.json does not "
              "have. Did you mean 'road'?"),
    "no class": (lambda t: region(t)["value"].update(brushlabels=[]), "has 0 classes"),
    # 3, 4: another image
    "size": (lambda t: region(t).update(original_width=99), "is of an image of 99 x"),
    "turned": (lambda t: region(t).update(image_rotation=90), "is turned"),
    # 5: run lengths
    "cut off": (lambda t: region(t)["value"].update(rle=region(t)["value"]["rle"][:-6]), "cut off"),
    "garbage": (lambda t: region(t)["value"].update(rle=[1, 2, 3]), "cut off"),
    "bomb": (lambda t: region(t)["value"].update(rle=[255] * 40), "it has 4294967295 values"),
    "other size": (lambda t: region(t)["value"].update(rle=region(t, 1)["value"]["rle"][:2] + [9] * 20), "it has"),
    "text": (lambda t: region(t)["value"].update(rle="abc"), "no list of bytes"),
    "format": (lambda t: region(t)["value"].update(format="png"), "its format is 'png'"),
    # 6: not asked for
    "unknown": (lambda t: t[0]["data"].update(meal_item="r00-0009-00000000"), "which no query of this run has"),
    "other run": (lambda t: t[0]["data"].update(meal_run="0123456789abcdef"), "is of the run '0123456789abcdef'"),
    "no item": (lambda t: t[0]["data"].pop("meal_item"), "has no meal_item"),
    # 7: twice
    "twice": (lambda t: t.append(t[0]), "twice by ann@example.org"),
    # 14: another export
    "min": (lambda t: [task.update(data=None) for task in t], "export the project as JSON"),
    "shape": (lambda t: region(t).update(type="ellipselabels"), "of type 'ellipselabels'"),
    "polygon": (lambda t: region(t).update(type="polygonlabels", value={"points": [[0, 0], [1, "x"], [2, 2]],
                                                                        "polygonlabels": ["road"]}), "no numbers"),
    "corners": (lambda t: region(t).update(type="polygonlabels", value={"points": [[0, 0], [1, 1]],
                                                                        "polygonlabels": ["road"]}), "2 corners"),
    "no result": (lambda t: t[0]["annotations"][0].update(result=None), "no list of regions"),
    "no text": (lambda t: t[0].update(id="\ud800\x1b[2J", data={}), "\\ud800\\x1b[2J"),
    "no annotations": (lambda t: t[0].update(annotations={}), "no list of objects"),
}


@pytest.mark.parametrize("case", LABEL_STUDIO)
def test_label_studio(tasks, tmp_path, refused, case):
    spoil, message = LABEL_STUDIO[case]
    spoil(tasks)
    assert message in refused(export(tmp_path, tasks))


def test_classes_of_the_run_that_changed_since(waiting, tmp_path, refused):
    """2: names and ids are compared."""
    file = label_studio(waiting.folder, waiting.truth, tmp_path)
    config = waiting.directory / "config.yaml"
    config.write_text(config.read_text().replace("- tree", "- bush"))
    assert accept_changes(waiting.directory)
    assert "The classes of the run have changed since" in refused(file)


def test_human_regions_that_overlap_are_counted_as_unlabelled(waiting, tasks, tmp_path):
    """10: nobody knows which was painted last; a prediction that nobody touched gives way."""
    result = tasks[0]["annotations"][0]["result"]
    whole = json.loads(json.dumps(result[1]))
    from meal_gpu.labelling import brush

    height, width = whole["original_height"], whole["original_width"]
    whole["value"] = {"format": "rle", "rle": brush.encode(np.ones((height, width), bool)), "brushlabels": ["car"]}
    result.append({**whole, "origin": "prediction"})
    assert waiting.add(export(tmp_path, tasks))[0] == 0
    assert [line.conflicts for line in read_journal(waiting.seed)] == [0, 0, 0]
    result[-1]["origin"] = "manual"
    for annotation in tasks[0]["annotations"]:
        annotation["updated_at"] = "2026-03-05T00:00:00Z"
    code, said = waiting.add(export(tmp_path, tasks))
    assert code == 0
    assert "pixels have two classes by one person and count as unlabelled" in said
    line = read_journal(waiting.seed)[-1]
    assert line.conflicts == line.unlabelled > 0
    tasks[0]["annotations"][0]["updated_at"] = "2026-03-06T00:00:00Z"
    assert waiting.add(export(tmp_path, tasks), "--overlap", "later")[0] == 0
    assert read_journal(waiting.seed)[-1].conflicts == 0
    assert (waiting.labels()[0] == 2).all()


def test_drafts_are_no_labels(waiting, tasks, tmp_path):
    """12, and 13: what is missing in an export is missing, not skipped."""
    tasks[0]["drafts"], tasks[0]["annotations"] = tasks[0]["annotations"], []
    code, said = waiting.add(export(tmp_path, tasks[:2]))
    assert code == 0
    assert "1 tasks have a draft and nothing submitted" in said
    assert "Round 0: 1 of 3 patches have labels, 2 are missing, 0 were skipped." in said


def test_label_studios_coco_export(waiting, tmp_path, refused):
    """14: BRUSH_TO_COCO turns regions into outlines."""
    held = json.loads(coco(waiting.folder, waiting.truth, tmp_path).read_text())
    held["info"] = {"contributor": "Label Studio"}
    assert "export the project as JSON" in refused(export(tmp_path, held))


@pytest.mark.parametrize(("content", "message"), [
    (b"image,label\n1,2\n", "of no format that is taken"),
    (b"0 0.5 0.5 0.1 0.1\n", "export from label studio as json"),
    (b"", "is empty"),
    (b"{", "is no JSON"),
    (b"[" * 100_000, "is no JSON"),
    (b'{"a": 1}', "JSON of no format"),
    (b"<svg/>", "the root <svg>"),
    (b"<annotations>", "no XML that can be read"),
    (b"<annotations><track/></annotations>", "CVAT for video"),
    (b"PK\x03\x04 no zip", "no zip that can be read"),
    (b'[{"data": {}, "annotations": [], "id": 1}]', "has no meal_item"),
    (b'[{"image": "a", "annotation_id": 3}]', "JSON-MIN"),
    (b'{"images": [{"id": 1}, {"id": 1}], "annotations": [], "categories": []}', "two images of the id 1"),
    (b'{"images": [1], "annotations": [], "categories": []}', "is no COCO file"),
])
def test_what_is_of_no_format(tmp_path, refused, content, message):
    (tmp_path / "file").write_bytes(content)
    assert message.lower() in refused(tmp_path / "file").lower()


def test_what_is_not_there(waiting, tmp_path, refused):
    assert "does not exist" in refused(tmp_path / "nothing.json")
    os.mkfifo(tmp_path / "pipe")
    assert "a named pipe" in refused(tmp_path / "pipe")
    (tmp_path / "empty").mkdir()
    assert "not clear what to take" in refused(tmp_path / "empty")
    code, said = waiting.call("labels", "add", tmp_path, tmp_path / "pipe")
    assert (code, "holds no run" in said) == (2, True)


CVAT = {
    # 15
    "runs": (lambda text: text.replace('rle="', 'rle="7, '), "add up to"),
    "box": (lambda text: text.replace('left="', 'left="9'), "is not within"),
    "numbers": (lambda text: text.replace('rle="', 'rle="x, '), "cannot be read"),
    "class": (lambda text: text.replace('label="road"', 'label="Road"'), "Did you mean 'road'?"),
    "size": (lambda text: text.replace('<image id="0"', '<image id="0" ').replace('width="45"', 'width="46"', 1),
             "is 46 x 30 pixels"),
    "name": (lambda text: text.replace("r00-0001", "r00-0009"), "Did you mean"),
    "shape": (lambda text: text.replace("<mask", "<ellipse").replace("</mask>", "</ellipse>"), "it is a ellipse"),
    # 19: an entity bomb, and a file of this machine
    "bomb": (lambda text: text.replace("<annotations>", '<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>'
                                       "<annotations><x>&b;</x>"), "document type or entities"),
    "file": (lambda text: text.replace("<annotations>", '<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]>'
                                       "<annotations><x>&a;</x>"), "document type or entities"),
}


@pytest.mark.parametrize("case", CVAT)
def test_cvat(waiting, tmp_path, refused, case):
    spoil, message = CVAT[case]
    file = cvat_xml(waiting.folder, waiting.truth, tmp_path)
    text = file.read_text()
    file.write_text(spoil(text))
    assert file.read_text() != text
    assert message in refused(file)


COCO = {
    "size": (lambda h: h["annotations"][0]["segmentation"].update(size=[1, 2]), "its size is [1, 2]"),
    "runs": (lambda h: h["annotations"][0]["segmentation"].update(counts=[10**15]), "add up to 1000000000000000"),
    "none": (lambda h: h["annotations"][0].pop("segmentation"), "boxes are no labels"),
    "polygon": (lambda h: h["annotations"][0].update(segmentation=[[1, 2, "x"]]), "cannot be read"),
    "image": (lambda h: h["images"][0].update(width=3), "is 3 x"),
    "class": (lambda h: h["categories"][0].update(name="Road"), "Did you mean 'road'?"),
    "lost": (lambda h: h["annotations"][0].update(image_id=77), "which the file does not list"),
}


@pytest.mark.parametrize("case", COCO)
def test_coco(waiting, tmp_path, refused, case):
    spoil, message = COCO[case]
    held = json.loads(coco(waiting.folder, waiting.truth, tmp_path).read_text())
    spoil(held)
    assert message in refused(export(tmp_path, held))


def rewritten(file, change):
    """A zip whose members went through a function of name and content."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, change(name, content))
    return file


MASKS = {  # 16
    "two classes": (lambda n, c: c.replace(b"road:", b"road:20,10,250::\nother:") if n == "labelmap.txt" else c,
                    "which then cannot be told apart"),
    "colour": (lambda n, c: b"# nothing\n" if n == "labelmap.txt" else c, "colours that are in no class"),
    "class": (lambda n, c: c.replace(b"road:", b"raod:") if n == "labelmap.txt" else c, "Did you mean 'road'?"),
    "table": (lambda n, c: b"road;1" if n == "labelmap.txt" else c, "is no labelmap"),
    "size": (lambda n, c: png(np.zeros((3, 4, 3), np.uint8)) if n.startswith("SegmentationClass/") else c, "4 x 3"),
    "grey": (lambda n, c: png(np.zeros((30, 45), np.uint8)) if n.startswith("SegmentationClass/") else c, "is grey"),
    "damaged": (lambda n, c: c[:-20] if n.startswith("SegmentationClass/") else c, "is truncated"),
}


@pytest.mark.parametrize("case", MASKS)
def test_segmentation_masks(waiting, tmp_path, refused, case):
    spoil, message = MASKS[case]
    assert message in refused(rewritten(segmentation_masks(waiting.folder, waiting.truth, tmp_path), spoil))


def test_a_zip_without_its_label_map(waiting, tmp_path, refused):
    file = segmentation_masks(waiting.folder, waiting.truth, tmp_path)
    with zipfile.ZipFile(file) as archive:
        kept = {name: archive.read(name) for name in archive.namelist() if name != "labelmap.txt"}
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in kept.items():
            archive.writestr(name, content)
    assert "no labelmap.txt" in refused(file)


def image(pixels, mode=None, **options):
    stream = io.BytesIO()
    made = Image.fromarray(pixels) if mode is None else Image.fromarray(pixels).convert(mode)
    made.save(stream, "PNG", **options)
    return stream.getvalue()


PNGS = {  # 17
    "size": (png(np.zeros((7, 9), np.uint8)), "is 9 x 7 pixels (width x height), its patch"),
    "16 bit": (image(np.zeros((30, 45), np.uint16)), "more than 8 bits"),
    "RGBA": (image(np.full((30, 45, 4), 9, np.uint8)), "colours that are in no class"),
    "grey and alpha": (image(np.zeros((30, 45), np.uint8), "LA"), "holds colours"),
    "palette": (image(np.full((30, 45), 9, np.uint8), "P"), "holds the class id 9"),
    "id": (png(np.full((30, 45), 9, np.uint8)), "holds the class id 9"),
    "JPEG": (b"\xff\xd8\xff\xe0", "cannot be"),
    "bomb": (b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in (
            (b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(b"")),
            (b"IEND", b""))), "is too large"),
}


@pytest.mark.parametrize("case", PNGS)
def test_masks(waiting, tmp_path, refused, case):
    content, message = PNGS[case]
    folder = index_folder(waiting.folder, waiting.truth, tmp_path)
    (folder / f"{waiting.items[0]['id']}.png").write_bytes(content)
    said = refused(folder)
    assert waiting.items[0]["id"] in said
    if case != "JPEG":
        assert message in said


def test_masks_of_names_that_nobody_asked_for(waiting, tmp_path, refused):
    folder = index_folder(waiting.folder, waiting.truth, tmp_path)
    (folder / f"{waiting.items[0]['id']}.png").rename(folder / "r00-0007-12345678.png")
    assert "which no query of this run has" in refused(folder)
    (folder / "r00-0007-12345678.png").rename(folder / f"{waiting.items[1]['file']}")
    assert "twice" in refused(folder)
    (folder / f"{waiting.items[1]['file']}").unlink()
    (folder / "classes.txt").write_text("tree\nroad\ncar\n")
    assert "classes.txt gives the id 0 to 'tree'" in refused(folder)


def test_links_are_not_followed(waiting, tmp_path, refused):
    folder = index_folder(waiting.folder, waiting.truth, tmp_path)
    mask = folder / f"{waiting.items[0]['id']}.png"
    mask.rename(tmp_path / "elsewhere.png")
    mask.symlink_to(tmp_path / "elsewhere.png")
    assert "is a symbolic link" in refused(folder)
    os.link(tmp_path / "elsewhere.png", waiting.folder / "masks" / "hard.png")  # a name of its own is no way out
    dropped = waiting.folder / "masks" / f"{waiting.items[0]['id']}.png"
    dropped.symlink_to(tmp_path / "elsewhere.png")
    from meal_gpu.errors import InputError

    with pytest.raises(InputError, match="symbolic link"):
        waiting.labels()


@pytest.mark.parametrize("name", ["../out.png", "/tmp/out.png", "a/../../out.png", "..\\out.png", "C:/out.png",
                                  "a\x1b[2J.png"])
def test_zips_that_lead_out(waiting, tmp_path, refused, name):
    with zipfile.ZipFile(tmp_path / "slip.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"x")
    assert "leads out of it" in refused(tmp_path / "slip.zip")
    assert not (tmp_path / "out.png").exists()


def test_zips_of_links_and_bombs(tmp_path, refused, monkeypatch):
    monkeypatch.setattr("meal_gpu.labelling.archive.MOST_BYTES", 2**20)
    link = zipfile.ZipInfo("a.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    assert "symbolic link" in refused(tmp_path / "link.zip")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(5):
            archive.writestr(f"{number}.png", bytes(2**18))
    assert "unpacks to more than" in refused(tmp_path / "bomb.zip")
    # One that says it is small and is not.
    with zipfile.ZipFile(tmp_path / "liar.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("annotations.xml", b"<" + bytes(10**6))
    content = (tmp_path / "liar.zip").read_bytes().replace(struct.pack("<I", 10**6 + 1), struct.pack("<I", 100))
    (tmp_path / "liar.zip").write_bytes(content)
    assert "liar.zip" in refused(tmp_path / "liar.zip")


def test_files_that_are_too_large(tmp_path, refused):
    with (tmp_path / "large.json").open("wb") as stream:
        stream.truncate(2**31)
    assert "a file of labels may have" in refused(tmp_path / "large.json")


def test_images_that_changed_since_the_query(waiting, tmp_path, refused):
    """20"""
    file = label_studio(waiting.folder, waiting.truth, tmp_path)
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "images" / "b.png")
    assert "b.png has changed since" in refused(file)


@pytest.mark.parametrize("change", [
    lambda text: text.replace('"patch": 5', '"patch": 6'),
    lambda text: text.replace('"file": "', '"file": "../'),
    lambda text: text.replace('"schema": 1', '"schema": 2'),
    lambda text: text[: len(text) // 2],
    lambda text: "[1, 2]",
    lambda text: "{}",
])
def test_a_query_that_was_edited(waiting, tmp_path, refused, change):
    file = label_studio(waiting.folder, waiting.truth, tmp_path)
    query = waiting.folder / "query.json"
    query.write_text(change(query.read_text()))
    assert "query.json" in refused(file)


def test_a_prediction_that_was_painted_over(waiting, tmp_path, refused):
    file = label_studio(waiting.folder, waiting.truth, tmp_path)
    start = waiting.folder / "predictions" / f"{waiting.items[0]['id']}.png"
    start.write_bytes(png(np.zeros((20, 30), np.uint8)))
    assert "If somebody labelled there, move the file to" in refused(file)


def test_a_patch_that_was_trained_on_is_not_skipped(waiting, tmp_path, monkeypatch):
    assert waiting.add(label_studio(waiting.folder, waiting.truth, tmp_path))[0] == 0
    monkeypatch.setattr("meal_gpu.labelling.adding.read_rounds", lambda directory: [{}])
    code, said = waiting.call("labels", "skip", waiting.directory, waiting.items[0]["id"])
    assert code == 2
    assert "cannot be skipped any more" in said
    newer = label_studio(waiting.folder, lambda name: np.zeros((40, 60), np.uint8), tmp_path,
                         updated_at="2027-01-01T00:00:00Z")
    code, said = waiting.add(newer)
    assert code == 0
    assert "Rounds 0 have been trained with other labels: --resume refuses to go on without --accept-changes" in said


def test_skipping_what_nobody_asked_for(waiting):
    code, said = waiting.call("labels", "skip", waiting.directory, "r00-0099-00000000")
    assert code == 2
    assert "which no query of this run has" in said


def test_names_that_are_no_text_are_kept_all_the_same(waiting, tasks, tmp_path):
    """Half a surrogate pair is JSON and no UTF-8."""
    tasks[0]["annotations"][0]["completed_by"] = "\ud800"
    assert waiting.add(export(tmp_path, tasks))[0] == 0
    assert read_journal(waiting.seed)[0].annotator
