"""Images of data sets, lists and folders: names, ids, and what is left out."""

import json
import os
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from generate_cases import write_image
from recipe_cases import recipe

from kd_d2.projects.pseudo_label import training
from kd_d2.projects.pseudo_label.class_lists import class_lists
from kd_d2.projects.pseudo_label.run_folder import RunFolder
from kd_d2.projects.pseudo_label.sources import (
    SourceError,
    from_coco_list,
    from_dataset,
    from_folder,
    from_names,
    together,
)


def fill(folder, *names):
    for seed, name in enumerate(names):
        write_image(folder / name, seed=seed)
    return folder


def coco_list(path, *images):
    path.write_text(json.dumps({"images": [{"file_name": n, "id": i} for n, i in images]}))
    return path


@pytest.fixture
def register():
    names = []

    def make(name, records, **metadata):
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).set(**metadata)
        names.append(name)
        return name

    yield make
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_a_folder_with_subfolders(tmp_path):
    fill(tmp_path / "set", "b.png", "a/z.JPG", "a/b.jpeg", "a.png", ".hidden.png", ".trash/c.png")
    (tmp_path / "set" / "notes.txt").write_text("no image")
    root, images = from_folder(tmp_path / "set")
    assert root == str(tmp_path / "set")
    assert [x.name for x in images] == ["a.png", "a/b.jpeg", "a/z.JPG", "b.png"]
    assert [x.id for x in images] == [1, 2, 3, 4]
    assert {x.source for x in images} == {"set"}
    assert all(x.file_name == f"{root}/{x.name}" for x in images)


def test_links_that_lead_in_circles_end(tmp_path):
    fill(tmp_path / "set", "a/1.png")
    fill(tmp_path / "elsewhere", "2.png")
    os.symlink(tmp_path / "set", tmp_path / "set" / "a" / "up")
    os.symlink(tmp_path / "elsewhere", tmp_path / "set" / "b")
    assert [x.name for x in from_folder(tmp_path / "set")[1]] == ["a/1.png", "b/2.png"]


def test_a_folder_that_is_none_or_empty(tmp_path):
    with pytest.raises(SourceError, match="no folder"):
        from_folder(tmp_path / "absent")
    with pytest.raises(SourceError, match=r"holds no images \(.bmp"):
        from_folder(tmp_path)


def test_output_below_the_images_is_left_out(tmp_path, caplog):
    """An earlier run is known by what it says of itself, the output by its name."""
    folder = fill(tmp_path / "set", "1.png", "a/2.png", "out/sheet/random.png", "a/old/sheet/3.png")
    fill(folder, "other/4.png")
    (folder / "other" / "run.json").write_text('{"program": "another"}')
    RunFolder.create(folder / "a" / "old", str(folder), [], [])
    os.symlink(folder / "out", folder / "b")
    expected = ["1.png", "a/2.png", "other/4.png"]
    for leave_out in ([folder / "out"], [tmp_path / "absent", f"{folder}/a/../out/"]):
        caplog.clear()
        assert [x.name for x in from_folder(folder, leave_out)[1]] == expected
        assert f"Left out of the images of {folder}: {folder}/a/old, {folder}/" in caplog.text
    assert [x.name for x in from_names([str(folder)], leave_out=[folder / "out"])[1]] == expected
    caplog.clear()
    assert len(from_folder(folder / "a", [folder / "out"])[1]) == 1
    assert f"{folder}/a/old" in caplog.text and f"{folder}/out" not in caplog.text
    caplog.clear()
    assert len(from_folder(folder / "out", [folder])[1]) == 1  # the output is above the images
    assert not caplog.text


def test_a_folder_that_is_the_output_itself(tmp_path):
    fill(tmp_path / "set", "1.png")
    with pytest.raises(SourceError, match="set is a folder of output.* another folder for the out"):
        from_folder(tmp_path / "set", [tmp_path / "set"])
    RunFolder.create(tmp_path / "set", str(tmp_path), [], [])
    with pytest.raises(SourceError, match="set is a folder of output"):
        from_folder(tmp_path / "set")


def test_a_training_does_not_label_its_own_pictures(tmp_path, monkeypatch):
    """Neither those of its phases nor those of its labels."""
    folder, listed = fill(tmp_path / "set", "1.png", "out/phase_b/seen.png", "own/sheet.png"), []

    class Stop(Exception):
        """Here nothing is to be labelled."""

    def prepare_run(_, images, *args, **kwargs):
        listed.extend(x.name for x in images)
        raise Stop

    monkeypatch.setattr(training, "prepare_run", prepare_run)
    names = {"UNLABELED": [str(folder)], "LABELED": [], "LABELS_DIR": str(folder / "own")}
    values = [x for key, value in names.items() for x in (f"PSEUDO_LABEL.{key}", value)]
    cfg = recipe(tmp_path, *values, "OUTPUT_DIR", folder / "out", "DATASETS.TEST", "()")
    with pytest.raises(Stop):
        training.make_labels(cfg, class_lists(cfg))
    assert listed == ["1.png"]


def test_a_list_without_annotations_and_categories(tmp_path):
    fill(tmp_path, "x/2.png", "x/1.png")
    path = coco_list(tmp_path / "unlabeled.json", ("2.png", 70), ("1.png", 5))
    root, images = from_coco_list(path, tmp_path / "x")
    assert root == str(tmp_path / "x")
    assert [(x.name, x.id, x.source) for x in images] == [
        ("1.png", 5, "unlabeled.json"),
        ("2.png", 70, "unlabeled.json"),
    ]


@pytest.mark.parametrize("ids", [(7, 7), ("a", "b"), (1, None), (True, 0), (1.5, 2)])
def test_ids_that_are_no_unique_numbers_are_given_anew(tmp_path, ids):
    fill(tmp_path, "b.png", "a.png")
    path = coco_list(tmp_path / "list.json", ("b.png", ids[0]), ("a.png", ids[1]))
    assert [(x.name, x.id) for x in from_coco_list(path, tmp_path)[1]] == [
        ("a.png", 1),
        ("b.png", 2),
    ]


def test_a_list_that_leaves_its_folder(tmp_path):
    fill(tmp_path, "x/1.png", "y/2.png")
    path = coco_list(tmp_path / "list.json", ("1.png", 1), ("../y/2.png", 2))
    root, images = from_coco_list(path, tmp_path / "x")
    assert root == str(tmp_path)
    assert [x.name for x in images] == ["x/1.png", "y/2.png"]


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"images": 3}', '{"images": [{"id": 1}]}', '{"images": ["a.png"]}']
)
def test_files_that_are_no_such_list(tmp_path, content):
    (tmp_path / "list.json").write_text(content)
    with pytest.raises(SourceError, match="no list of images as COCO's files have it"):
        from_coco_list(tmp_path / "list.json", tmp_path)


def test_lists_of_nothing_and_of_what_is_not_there(tmp_path):
    with pytest.raises(SourceError, match="cannot be read: No such file"):
        from_coco_list(tmp_path / "absent.json", tmp_path)
    path = coco_list(tmp_path / "list.json")
    with pytest.raises(SourceError, match="list.json names no images"):
        from_coco_list(path, tmp_path)
    coco_list(path, ("1.png", 1))
    with pytest.raises(SourceError, match="are not there, e.g. .*1.png"):
        from_coco_list(path, tmp_path)
    for root in ("", tmp_path / "absent"):
        with pytest.raises(SourceError, match="--image-root"):
            from_coco_list(path, root)
    fill(tmp_path, "1.png")
    coco_list(path, ("1.png", 1), ("./1.png", 2))
    with pytest.raises(SourceError, match="1.png more than once"):
        from_coco_list(path, tmp_path)


def test_one_missing_image_is_left_to_the_reader(tmp_path):
    fill(tmp_path, "1.png")
    path = coco_list(tmp_path / "list.json", ("1.png", 1), ("2.png", 2))
    assert len(from_coco_list(path, tmp_path)[1]) == 2


def test_a_registered_data_set(tmp_path, register):
    fill(tmp_path, "x/1.png", "x/2.png")
    records = [{"file_name": str(tmp_path / "x" / f"{i}.png"), "image_id": 10 - i} for i in (1, 2)]
    name = register("pl_numbers", records)
    root, images = from_dataset(name)
    assert root == str(tmp_path / "x")
    assert [(x.name, x.id, x.source) for x in images] == [("1.png", 9, name), ("2.png", 8, name)]
    root, images = from_dataset(register("pl_rooted", records, image_root=str(tmp_path)))
    assert root == str(tmp_path) and images[0].name == "x/1.png"


def test_data_sets_that_cannot_be_had(tmp_path):
    with pytest.raises(SourceError, match="did you mean 'coco_2017_val'"):
        from_dataset("coco_2017_vall")
    register_coco_instances("pl_absent", {}, str(tmp_path / "absent.json"), str(tmp_path))
    try:
        with pytest.raises(SourceError, match="'pl_absent' cannot be read: No such file.*absent"):
            from_dataset("pl_absent")
    finally:
        DatasetCatalog.remove("pl_absent")
        MetadataCatalog.remove("pl_absent")


def test_colliding_ids_are_renumbered_as_a_whole(tmp_path):
    fill(tmp_path, "b/1.png", "b/2.png", "a/1.png")
    root, images = together([from_folder(tmp_path / "b"), from_folder(tmp_path / "a")])
    assert root == str(tmp_path)
    assert [(x.name, x.id, x.source) for x in images] == [
        ("a/1.png", 1, "a"),
        ("b/1.png", 2, "b"),
        ("b/2.png", 3, "b"),
    ]
    assert all(Path(root, x.name) == Path(x.file_name) for x in images)


def test_ids_that_do_not_collide_stay(tmp_path):
    fill(tmp_path, "b/1.png", "a/1.png")
    listed = from_coco_list(coco_list(tmp_path / "l.json", ("1.png", 90)), tmp_path / "b")
    _, images = together([from_folder(tmp_path / "a"), listed])
    assert [(x.name, x.id) for x in images] == [("a/1.png", 1), ("b/1.png", 90)]


def test_an_image_of_two_sources_is_of_the_first(tmp_path):
    fill(tmp_path, "x/1.png", "x/2.png")
    listed = from_coco_list(coco_list(tmp_path / "l.json", ("2.png", 90)), tmp_path / "x")
    _, images = together([listed, from_folder(tmp_path / "x")])
    assert [(x.name, x.id, x.source) for x in images] == [
        ("1.png", 1, "x"),
        ("2.png", 90, "l.json"),
    ]


def test_what_a_name_stands_for(tmp_path, register):
    fill(tmp_path, "a/1.png", "b/2.png", "c/3.png")
    records = [{"file_name": str(tmp_path / "c" / "3.png"), "image_id": "three"}]
    listed = coco_list(tmp_path / "l.json", ("2.png", 9))
    names = [register("pl_one", records), str(listed), str(tmp_path / "a")]
    _, images = from_names(names, str(tmp_path / "b"))
    assert [(x.name, x.source) for x in images] == [
        ("a/1.png", "a"),
        ("b/2.png", "l.json"),
        ("c/3.png", "pl_one"),
    ]
    _, same = from_names([names[0], f"{listed},{tmp_path / 'b'}", names[2]])
    assert same == images
    with pytest.raises(SourceError, match="There is no folder .*/d"):
        from_names([str(tmp_path / "d")])
    with pytest.raises(SourceError, match="pl_onee is no folder.*did you mean 'pl_one'"):
        from_names(["pl_onee"])


def test_names_that_no_file_can_hold(tmp_path):
    write_image(tmp_path / "good.png")
    os.rename(tmp_path / "good.png", os.fsencode(tmp_path / "bad") + b"\xff.png")
    with pytest.raises(SourceError, match="no UTF-8"):
        from_folder(tmp_path)
