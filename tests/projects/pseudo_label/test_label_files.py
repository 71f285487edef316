"""Labels as YOLO, Pascal VOC and CVAT have them."""

import zipfile
from xml.etree import ElementTree

import pytest
from cases import Case, make_run, usual_case

from kd_d2.projects.pseudo_label.export import ExportSettings, export_run
from kd_d2.projects.pseudo_label.label_files import LabelFileError, check_label_files
from kd_d2.projects.pseudo_label.shards import USED


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path, usual_case())


def test_yolo(run):
    export_run(run, ExportSettings(formats=("yolo",)))
    folder = run.folder / "export" / "yolo"
    lines = (folder / "labels" / "part0" / "image_0.txt").read_text().splitlines()
    # (10, 10, 40, 50) in an image of 80 x 60
    assert lines[0] == "0 0.312500 0.500000 0.375000 0.666667"
    assert lines[1].startswith("1 ") and len(lines) == 2
    files = sorted(x.relative_to(folder).as_posix() for x in folder.rglob("*.txt"))
    assert files == [f"labels/part{i % 2}/image_{i}.txt" for i in (0, 2, 1)]
    assert '  1: "dog"' in (folder / "data.yaml").read_text()


def test_voc(run):
    export_run(run, ExportSettings(formats=("voc",)))
    folder = run.folder / "export" / "voc"
    assert (folder / "ImageSets/Main/train.txt").read_text().splitlines() == [
        f"part{i % 2}/image_{i}" for i in range(3)
    ]
    tree = ElementTree.parse(folder / "Annotations" / "part0" / "image_0.xml")
    assert tree.findtext("size/width") == "80" and tree.findtext("filename") == "part0/image_0.png"
    objects = tree.findall("object")
    assert [x.findtext("name") for x in objects] == ["cat", "dog"]
    corners = [[int(y.text) for y in x.find("bndbox")] for x in objects]
    # from 1, and both ends included: 10 to 40 are the pixels 11 to 40
    assert corners == [[11, 11, 40, 50], [6, 7, 20, 31]]


def test_cvat(tmp_path):
    case = usual_case()
    case.categories = ("cat & <co>", "dog", "bird")
    run = make_run(tmp_path, case)
    export_run(run, ExportSettings(formats=("cvat",)))
    with zipfile.ZipFile(run.folder / "export" / "cvat.zip") as archive:
        assert archive.namelist() == ["annotations.xml"]
        tree = ElementTree.fromstring(archive.read("annotations.xml"))
    assert tree.findtext("version") == "1.1"
    assert [(x.get("id"), x.get("name"), len(x)) for x in tree.findall("image")] == [
        ("0", "part0/image_0.png", 2), ("1", "part1/image_1.png", 1), ("2", "part0/image_2.png", 0)
    ]  # fmt: skip
    box = tree.find("image/box")
    assert (box.get("label"), box.get("xbr"), box.get("ybr")) == ("cat & <co>", "40.00", "50.00")


@pytest.mark.parametrize(
    "names, words",
    [(["a.jpg", "a.png"], "only in their suffix"), (["../a.jpg", "b.jpg"], "outside the run's")],
)
def test_names_that_label_files_cannot_have(tmp_path, names, words):
    with pytest.raises(LabelFileError, match=words):
        check_label_files(names)
    check_label_files(["a.jpg", "b.jpg", "a/a.jpg"])
    run = make_run(tmp_path, Case(status=[USED, USED], names=names))
    export_run(run)
    before = (run.folder / "export" / "provenance.json").read_bytes()
    with pytest.raises(LabelFileError, match=words):
        export_run(run, ExportSettings(formats=("yolo",)))
    # and the export before is as it was
    assert (run.folder / "export" / "provenance.json").read_bytes() == before
    assert not (run.folder / "export" / ".new").exists()
