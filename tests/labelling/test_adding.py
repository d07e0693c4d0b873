"""`meal-gpu labels add` and `skip`: what is taken, once, and what counts then."""

import json

import numpy as np
import pytest
import torch
from annotators import TOOLS, index_folder, label_studio, segmentation_masks, windows
from PIL import Image

from meal_gpu.errors import InputError, LabelsMissingError
from meal_gpu.journal import read_journal
from meal_gpu.labelling import brush


def sampled(waiting, item):
    """What training gets of the truth."""
    grid = waiting.config.data.tiling()
    whole = Image.fromarray(waiting.truth(item["image"])).resize((grid.width, grid.height), Image.Resampling.NEAREST)
    y0, x0, y1, x1 = item["box"]
    return np.array(whole)[y0:y1, x0:x1]


@pytest.mark.parametrize("tool", TOOLS)
def test_what_comes_back_is_what_was_painted(waiting, tmp_path, tool):
    code, said = waiting.add(TOOLS[tool](waiting.folder, waiting.truth, tmp_path))
    assert code == 0, said
    assert "3 labelled" in said
    assert "Round 0: 3 of 3 patches have labels, 0 are missing, 0 were skipped." in said
    for item, labels in zip(waiting.items, waiting.labels().numpy(), strict=True):
        np.testing.assert_array_equal(labels, sampled(waiting, item))
    taken = read_journal(waiting.seed)
    assert [line.item for line in taken] == [item["id"] for item in waiting.items]
    for line, item in zip(taken, waiting.items, strict=True):
        y0, x0, y1, x1 = item["original"]["box"]
        assert line.pixels.total == (y1 - y0) * (x1 - x0)
        assert line.pixels.prediction > 0
        assert line.pixels.changed > 0
        assert line.pixels.manual == 0
        assert (line.unlabelled, line.conflicts, line.revision) == (0, 0, 1)
    if tool == "Label Studio":
        assert {(line.annotator, line.lead_time, line.updated) for line in taken} == {
            ("ann@example.org", 30.0, "2026-03-01T10:01:00.000000Z")}


@pytest.mark.parametrize("tool", TOOLS)
def test_the_same_file_twice_changes_nothing(waiting, tmp_path, tool):
    file = TOOLS[tool](waiting.folder, waiting.truth, tmp_path)
    assert waiting.add(file)[0] == 0
    before = waiting.files()
    code, said = waiting.add(file)
    assert code == 0
    assert "nothing new; 3 as they were" in said
    assert waiting.files() == before


def test_a_newer_label_supersedes_and_the_older_one_stays(waiting, tmp_path):
    assert waiting.add(label_studio(waiting.folder, waiting.truth, tmp_path))[0] == 0
    before = read_journal(waiting.seed)
    newer = label_studio(waiting.folder, lambda name: np.full((40, 60), 2, np.uint8), tmp_path,
                         updated_at="2026-03-02T10:00:00Z")
    code, said = waiting.add(newer)
    assert code == 0
    assert "3 labelled, 3 of them in place of what was there" in said
    taken = read_journal(waiting.seed)
    assert taken[:3] == before
    assert [line.revision for line in taken] == [1, 1, 1, 2, 2, 2]
    assert all((waiting.seed / line.labels).is_file() for line in taken)
    assert (waiting.labels() == 2).all()
    code, said = waiting.add(label_studio(waiting.folder, waiting.truth, tmp_path))  # the old export again
    assert code == 0
    assert "is older than what was taken" in said
    assert read_journal(waiting.seed) == taken


def test_a_submitted_prediction_is_a_label_and_skipped_tasks_are_none(waiting, tmp_path):
    """A skipped task carries the prediction as its result."""
    tasks = json.loads((waiting.folder / "labelstudio" / "tasks.json").read_text())
    for number, task in enumerate(tasks):
        regions = [{**region, "origin": "prediction"} for region in task["predictions"][0]["result"]]
        task |= {"id": number, "annotations": [{"result": regions, "was_cancelled": number == 1}]}
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    code, said = waiting.add(tmp_path / "export.json")
    assert code == 0
    assert "2 labelled, 1 skipped" in said
    assert "100 % of the predicted pixels were left as they are." in said
    assert "Next, to be asked for others in place of those skipped: meal-gpu run --resume" in said
    lines = read_journal(waiting.seed)
    assert [line.status for line in lines] == ["labelled", "skipped", "labelled"]
    assert lines[1].labels == ""


def test_a_stroke_that_covers_no_pixel_is_said(waiting, tmp_path):
    """In a browser, a brush of the usual size on a small window: alpha is below a half everywhere."""
    export = label_studio(waiting.folder, waiting.truth, tmp_path)
    tasks = json.loads(export.read_text())
    regions = tasks[1]["annotations"][0]["result"]
    rle = brush.encode(np.zeros(windows(waiting.folder, waiting.truth)[1][1].shape, bool))
    regions.append({**regions[-1], "id": "thin", "value": {**regions[-1]["value"], "rle": rle}})
    export.write_text(json.dumps(tasks))
    code, said = waiting.add(export)
    assert code == 0, said
    assert (f"1 brush strokes cover no pixel by more than half, and count as nothing ({export}: task 2, item "
            f"{waiting.items[1]['id']}, region {len(regions)}): zoom in, or take a larger brush.") in said


def test_parts_are_ignored_and_no_void(waiting, tmp_path, caplog):
    caplog.set_level("INFO", "meal_gpu")

    def half(name):
        labels = waiting.truth(name).copy()
        labels[:, ::2] = 254
        return labels

    code, said = waiting.add(label_studio(waiting.folder, half, tmp_path))
    assert code == 0
    assert "3 partial" in said
    labels = waiting.labels().numpy()
    assert 0.4 < (labels == 255).mean() < 0.9
    assert "unlabelled" in caplog.text
    line = read_journal(waiting.seed)[0]
    assert line.unlabelled == 20 * 15
    assert line.pixels.total == 20 * 15
    assert 0 < line.void < line.pixels.total


def test_nothing_labelled_at_all_does_not_train(waiting, tmp_path):
    assert waiting.add(label_studio(waiting.folder, lambda name: np.full((40, 60), 254, np.uint8), tmp_path))[0] == 0
    assert [line.status for line in read_journal(waiting.seed)] == ["partial"] * 3
    with pytest.raises(InputError, match="Nobody has labelled a pixel of round 0"):
        waiting.labels()


def test_masks_that_are_void_all_over_are_asked_about(waiting, tmp_path):
    def void_in_b(name):
        return np.full((40, 60), 255, np.uint8) if name == "b" else waiting.truth(name)

    file, before = label_studio(waiting.folder, void_in_b, tmp_path), waiting.files()
    code, said = waiting.add(file)
    assert code == 2
    assert f"{waiting.items[0]['id']} is void all over" in said
    assert waiting.files() == before
    assert waiting.add(file, "--void", "skip")[0] == 0
    assert [line.status for line in read_journal(waiting.seed)] == ["skipped", "labelled", "labelled"]


def test_predictions_that_nobody_has_looked_at_are_not_taken(waiting, tmp_path):
    """CVAT and COCO give back what was imported, whether anybody has opened the image or not."""
    for file in (waiting.folder / "cvat" / "annotations.xml", waiting.folder / "coco" / "instances.json"):
        code, said = waiting.add(file)
        assert code == 0
        assert "3 items came back with the prediction as it went out" in said
        assert read_journal(waiting.seed) == []
    code, said = waiting.add(file, "--untouched")
    assert "3 labelled" in said
    assert all(line.pixels.changed == line.pixels.manual == 0 for line in read_journal(waiting.seed))


def two(waiting, tmp_path, one, other):
    """Two people label all tasks, the second a minute later."""
    tasks = json.loads(label_studio(waiting.folder, one, tmp_path).read_text())
    seconds = json.loads(label_studio(waiting.folder, other, tmp_path, completed_by=2,
                                      updated_at="2026-03-01T10:02:00Z").read_text())
    for task, second in zip(tasks, seconds, strict=True):
        task["annotations"] += second["annotations"]
    (tmp_path / "both.json").write_text(json.dumps(tasks))
    return tmp_path / "both.json"


def test_of_two_annotators_the_latest_counts_or_the_majority(waiting, tmp_path):
    def other(name):
        labels = waiting.truth(name).copy()
        labels[:20] = 1
        return labels

    code, said = waiting.add(two(waiting, tmp_path, waiting.truth, other))
    assert code == 0
    assert "3 patches have labels of several people, who agree on road" in said
    assert len(read_journal(waiting.seed)) == 6
    truth = np.stack([sampled(waiting, item) for item in waiting.items])
    latest = waiting.oracle().label(0, waiting.patches).numpy()
    assert (latest[:2] == 1).all()  # these patches lie in the upper half
    np.testing.assert_array_equal(latest[2], truth[2])
    tie = waiting.oracle(annotators="majority").label(0, waiting.patches).numpy()
    np.testing.assert_array_equal(tie[2], truth[2])
    np.testing.assert_array_equal(tie[:2], np.where(truth[:2] == 1, 1, 255))


def test_skipped_patches_leave_the_queue_and_others_are_asked_for(waiting, tmp_path):
    first, *rest = waiting.items
    code, said = waiting.call("labels", "skip", waiting.directory, first["id"])
    assert code == 0
    assert "1 skipped" in said
    asked = []

    def more(n, all_, skipped):
        asked.append((n, all_, skipped))
        return [{"id": 9, "image": "c", "row": 0, "col": 1, "box": [0, 16, 10, 32], "score": 0.5}]

    patches = [{"id": item["patch"], "image": item["image"], "box": item["box"]} for item in waiting.items]
    for _ in range(2):  # asked once
        revealed, skipped = waiting.oracle().ask(0, patches, more)
        assert asked == [(1, waiting.patches.tolist(), [5])]
        assert [patch["id"] for patch in revealed] == [0, 3, 9]
        assert skipped == [5]
    new = waiting.seed / "to-label" / "round-00-more-1"
    held = json.loads((new / "query.json").read_text())
    assert held["replaces"] == [first["id"]]
    assert [item["id"][:8] for item in held["items"]] == ["r00-0004"]
    assert [task["data"]["meal_item"] for task in json.loads((new / "labelstudio" / "tasks.json").read_text())] == [
        held["items"][0]["id"]]
    ids = waiting.patches.new_tensor([0, 3, 9])
    with pytest.raises(LabelsMissingError, match="3 of 3"):
        waiting.oracle().label(0, ids)
    # It has left the queue for good: a label that comes now is not taken.
    code, said = waiting.add(label_studio(waiting.folder, waiting.truth, tmp_path))
    assert code == 0
    assert "1 items were skipped before" in said
    with pytest.raises(LabelsMissingError, match=r"1 of 3 masks are missing in .*round-00-more-1"):
        waiting.oracle().label(0, ids)
    assert waiting.add(label_studio(new, waiting.truth, tmp_path))[0] == 0
    for item, labels in zip([*rest, held["items"][0]], waiting.oracle().label(0, ids).numpy(), strict=True):
        np.testing.assert_array_equal(labels, sampled(waiting, item))


def test_all_skipped_and_none_left_is_a_clean_end(waiting):
    ids = [item["id"] for item in waiting.items]
    assert waiting.call("labels", "skip", waiting.directory, *ids)[0] == 0
    patches = [{"id": item["patch"], "image": item["image"], "box": item["box"]} for item in waiting.items]
    with pytest.raises(InputError, match="All patches that round 0 asked for were skipped, and there are no others"):
        waiting.oracle().ask(0, patches, lambda n, asked, skipped: [])


def test_dropped_masks_may_have_the_size_of_window_patch_or_network(waiting):
    (first, painted), (second, _), (third, _) = windows(waiting.folder, waiting.truth)
    masks = waiting.folder / "masks"
    Image.fromarray(painted).save(masks / f"{first['id']}.png")
    y0, x0, y1, x1 = second["original"]["box"]
    Image.fromarray(waiting.truth(second["image"])[y0:y1, x0:x1]).save(masks / second["file"])
    Image.fromarray(sampled(waiting, third)).save(masks / third["file"])
    for item, labels in zip(waiting.items, waiting.labels().numpy(), strict=True):
        np.testing.assert_array_equal(labels, sampled(waiting, item))
    assert [line.source for line in read_journal(waiting.seed)] == [
        f"to-label/round-00/masks/{name}" for name in (f"{first['id']}.png", second["file"], third["file"])]
    before = waiting.files()
    waiting.labels()
    assert waiting.files() == before
    Image.fromarray(np.zeros_like(painted)).save(masks / f"{first['id']}.png")
    assert not waiting.labels()[0].any()
    assert read_journal(waiting.seed)[-1].revision == 2


def test_labels_are_read_where_nothing_can_be_written(waiting, tmp_path):
    """A run that is finished may be exported from a disk that is read only."""
    assert waiting.add(label_studio(waiting.folder, waiting.truth, tmp_path))[0] == 0
    labels, folders = waiting.labels(), [path for path in waiting.directory.rglob("*") if path.is_dir()]
    for lock in list(waiting.directory.rglob(".labels.lock*")):
        lock.unlink()
    for folder in folders:
        folder.chmod(0o500)
    try:
        assert torch.equal(waiting.labels(), labels)
        assert not list(waiting.directory.rglob(".labels.lock*"))
    finally:
        for folder in folders:
            folder.chmod(0o700)


def test_what_lies_beside_the_masks_is_listed_with_the_nearest_name(waiting):
    masks = waiting.folder / "masks"
    (masks / "done").mkdir()
    item = waiting.items[0]
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(masks / f"{item['id']}-mask.png")
    (masks / "notes.tif").write_bytes(b"")
    with pytest.raises(LabelsMissingError) as caught:
        waiting.labels()
    said = str(caught.value)
    assert "done (a folder)" in said
    assert "notes.tif (no .png file)" in said
    assert f"{item['id']}-mask.png Did you mean '{item['id']}.png'?" in said


def test_a_query_of_before_goes_on(waiting):
    """A list of patches; masks of the network's size under the names of image, row and column."""
    old = [{"id": item["patch"], "image": item["image"], "row": item["row"], "col": item["col"], "box": item["box"],
            "file": item["file"]} for item in waiting.items]
    (waiting.folder / "query.json").write_text(json.dumps(old, indent=1))
    for item in old[:2]:
        Image.fromarray(sampled(waiting, item)).save(waiting.folder / "masks" / item["file"])
    with pytest.raises(LabelsMissingError, match="1 of 3"):
        waiting.labels()
    given = waiting.directory.parent / "given"
    given.mkdir()
    Image.fromarray(sampled(waiting, old[2])).save(given / old[2]["file"])
    assert waiting.add(given)[0] == 0
    for item, labels in zip(old, waiting.labels().numpy(), strict=True):
        np.testing.assert_array_equal(labels, sampled(waiting, item))


def test_masks_of_cvat_that_are_background_are_not_labelled_yet(waiting, tmp_path):
    def but_b(name):
        return np.full((40, 60), 254, np.uint8) if name == "b" else waiting.truth(name)

    code, said = waiting.add(segmentation_masks(waiting.folder, but_b, tmp_path))
    assert code == 0
    assert "is background all over: it counts as not labelled yet" in said
    assert "1 are missing" in said


def test_folders_of_masks_may_hold_some_and_other_files(waiting, tmp_path):
    folder = index_folder(waiting.folder, waiting.truth, tmp_path)
    (folder / f"{waiting.items[2]['id']}.png").unlink()
    (folder / "readme.md").write_text("hello")
    code, said = waiting.add(folder)
    assert code == 0
    assert "Not taken, since only PNG files directly in the folder are masks: readme.md." in said
    assert "When the others are there: meal-gpu run --resume" in said
