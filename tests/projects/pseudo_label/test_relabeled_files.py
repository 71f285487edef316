"""Files of views: written and read, those that are none, and what a view cannot be of."""

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from relabeled_cases import box, image, named, read
from tiny_models import tiny_cfg

from kd_d2.config.rules import ConfigError
from kd_d2.data.requirements import check_datasets
from kd_d2.projects.pseudo_label import View, read_view, write_view
from kd_d2.projects.pseudo_label.trained_on import ExportedLabelsError


def test_it_is_no_test_set(labelled, tmp_path):
    cfg = tiny_cfg()
    cfg.DATASETS.TRAIN = (named(tmp_path, datasets=[labelled], missing="mask"),)
    cfg.DATASETS.TEST = cfg.DATASETS.TRAIN
    with pytest.raises(ValueError, match="DATASETS.TEST names 'relabeled:.*people have labelled"):
        check_datasets(cfg)


def test_written_and_read(tmp_path):
    view = View(["a", "b"], ["car"], "pseudo", ["dog"], "RUN/export", 0.5, True)
    write_view(tmp_path / "view.json", view)
    assert read_view(tmp_path / "view.json") == view
    (tmp_path / "short.json").write_text(
        '{"datasets": ["a"], "classes": ["car"], "missing": "mask"}'
    )
    short = read_view(tmp_path / "short.json")
    assert (list(short.drop), short.pseudo_labels, short.iou, short.others) == (
        [],
        None,
        0.7,
        False,
    )


VIEW = {"datasets": ["a"], "classes": ["car"], "missing": "mask"}


@pytest.mark.parametrize(
    "content, words",
    [
        (None, "cannot be read .No such file.*datasets, classes, missing, drop"),
        ("{", "is no JSON"),
        ("[]", "holds a list"),
        ({**VIEW, "others": False, "othrs": True}, "Unknown key 'othrs': did you mean 'others'"),
        ({"classes": ["car"]}, "does not say what datasets and missing are"),
        ({**VIEW, "datasets": []}, "datasets is .*at least one"),
        ({**VIEW, "datasets": "a"}, "datasets is 'a'"),
        ({**VIEW, "datasets": ["a", "a"]}, "datasets has 'a' more than once"),
        ({**VIEW, "classes": ["car", "cat", "car"]}, "classes has 'car' more than once"),
        ({**VIEW, "classes": [1]}, "classes is .*names"),
        ({**VIEW, "drop": ["car"]}, "'car' is in classes and in drop"),
        ({**VIEW, "missing": "drop"}, "one of pseudo, mask, background"),
        ({**VIEW, "iou": 70}, "iou is 70; it must be a number from 0 to 1"),
        ({**VIEW, "others": 1}, "others is 1; it must be True or False"),
        ({**VIEW, "others": True}, "others is true, but pseudo_labels is not given"),
        ({**VIEW, "missing": "pseudo"}, "missing is 'pseudo', but pseudo_labels is not given"),
    ],
)
def test_files_that_are_no_views(content, words, tmp_path):
    file = tmp_path / "view.json"
    if content is not None:
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ConfigError, match=f"^{file}.*{words}") as caught:
        read_view(file)
    assert "\n" not in str(caught.value)


def test_a_view_of_a_view(labelled, tmp_path):
    inner = named(tmp_path, datasets=[labelled], classes=["car"], missing="background")
    view = {"datasets": [inner], "classes": ["helmet", "car"], "drop": []}
    [first, *_] = read(tmp_path, **view, missing="mask")
    assert [x["category_id"] for x in first["annotations"]] == [1]
    assert first["covered_classes"] == [1]
    masked = named(tmp_path, datasets=[labelled], missing="mask")
    with pytest.raises(ConfigError, match="is such a file itself"):
        named(tmp_path, **view | {"datasets": [masked]}, missing="mask")


def test_what_is_not_there(labelled, tmp_path):
    with pytest.raises(
        ValueError, match="view_0.json names the data set 'relabeled_peple'.*relabeled_people"
    ):
        named(tmp_path, datasets=["relabeled_peple"], missing="mask")
    with pytest.raises(ExportedLabelsError, match="nowhere holds no exported"):
        named(tmp_path, datasets=[labelled], missing="pseudo", pseudo_labels="nowhere")
    register_coco_instances("relabeled_coco", {}, str(tmp_path / "x.json"), str(tmp_path / "y"))
    with pytest.raises(FileNotFoundError, match="relabeled_coco needs .*x.json and .*y/"):
        named(tmp_path, datasets=["relabeled_coco"], missing="mask")
    DatasetCatalog.remove("relabeled_coco")
    MetadataCatalog.pop("relabeled_coco")
    assert f"relabeled:{tmp_path / 'view_0.json'}" not in DatasetCatalog


@pytest.mark.parametrize(
    "view, words",
    [
        ({"drop": []}, r"'relabeled_people' has classes .* not have \(dog\): add them to classes"),
        ({"classes": ["helmet"], "drop": ["dog", "car"]}, r"none of the student's classes \(helm"),
    ],
)
def test_classes_that_do_not_fit(exported, labelled, view, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        read(tmp_path, **{"datasets": [labelled], "missing": "mask"} | view)


@pytest.mark.parametrize(
    "view, words",
    [
        ({"classes": ["car", "dog"], "drop": []}, r"export' has classes .*\(helmet\)"),
        (
            {"classes": ["car", "vest"], "drop": ["dog", "helmet"]},
            r"export has none of the classes that 'relabeled_people' lacks \(vest\)",
        ),
    ],
)
def test_pseudo_labels_that_do_not_fit(exported, labelled, view, words, tmp_path):
    pseudo = {"missing": "pseudo", "pseudo_labels": str(exported), "others": True}
    with pytest.raises(ConfigError, match=words):
        read(tmp_path, datasets=[labelled], **pseudo | view)


def test_data_sets_without_labels(register, tmp_path):
    bare = {k: v for k, v in image(tmp_path, 0).items() if k != "annotations"}
    register("relabeled_bare", [image(tmp_path, 1, box(1, 0, 0, 9, 9)), bare])
    with pytest.raises(ConfigError, match="images without labels, e.g. .*image_0.png"):
        read(tmp_path, datasets=["relabeled_bare"], missing="mask")
    register("relabeled_empty", [image(tmp_path, 0)])
    with pytest.raises(ConfigError, match="has no labelled box"):
        read(tmp_path, datasets=["relabeled_empty"], missing="mask")
    register("relabeled_nameless", [image(tmp_path, 0, box(1, 0, 0, 9, 9))], None)
    with pytest.raises(ConfigError, match="does not say which classes it has"):
        read(tmp_path, datasets=["relabeled_nameless"], missing="mask")
