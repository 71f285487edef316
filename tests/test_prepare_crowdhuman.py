"""datasets/prepare_crowdhuman.py: lines in, COCO's JSON out, mistakes in a sentence."""

import json
import re
import runpy
import sys
import tracemalloc
from pathlib import Path

import pytest
from PIL import ExifTags, Image

SCRIPT = Path(__file__).resolve().parents[1] / "datasets" / "prepare_crowdhuman.py"
PERSON = {"tag": "person", "fbox": [10, 20, 30, 60], "vbox": [10, 20, 30, 40], "hbox": [0, 0, 1, 1]}


def line(name, *boxes):
    return json.dumps({"ID": name, "gtboxes": list(boxes)})


@pytest.fixture
def folder(tmp_path):
    """A data folder with some images; `write` puts lines into its val file."""
    crowd = tmp_path / "crowdhuman"
    (crowd / "Images").mkdir(parents=True)
    for name, size in (("273278,c9db", (200, 100)), ("b", (120, 90)), ("c", (60, 50))):
        Image.new("RGB", size).save(crowd / "Images" / f"{name}.jpg")
    return crowd


@pytest.fixture
def convert(folder, monkeypatch, capsys):
    """Runs the script on lines (for val); returns the JSON and what is printed."""

    def convert(*lines, arguments=("val",)):
        text = "\n".join(x if isinstance(x, str) else x.decode("latin-1") for x in lines)
        (folder / "annotation_val.odgt").write_bytes(text.encode("latin-1"))
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--root", str(folder.parent), *arguments])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        content = json.loads((folder / "annotations" / "val.json").read_text())
        return content, capsys.readouterr().out

    return convert


@pytest.fixture
def refuse(convert, folder, capsys):
    """Converts what cannot be; returns the sentence."""

    def refuse(*lines, **kwargs):
        with pytest.raises(SystemExit) as ended:
            convert(*lines, **kwargs)
        assert ended.value.code == 2
        assert not list(folder.glob("annotations/*")) + list(folder.glob("annotations/.*"))
        text = capsys.readouterr().err.strip().splitlines()[-1]
        assert text.startswith("Error: ")
        return text

    return refuse


def test_by_hand(convert):
    outside = {"tag": "person", "fbox": [-5, -6, 40, 80], "vbox": [0, 0, 20, 30], "extra": {}}
    content, _ = convert(
        line("273278,c9db", PERSON, outside),
        line("b"),
        line("c", {**PERSON, "fbox": [1.5, 2, 3, 4], "extra": {"ignore": 0, "occ": 1}}),
        "",
    )
    assert content["categories"] == [{"id": 1, "name": "person"}]
    assert content["images"] == [
        {"id": 0, "file_name": "273278,c9db.jpg", "width": 200, "height": 100},
        {"id": 1, "file_name": "b.jpg", "width": 120, "height": 90},
        {"id": 2, "file_name": "c.jpg", "width": 60, "height": 50},
    ]
    one = {"category_id": 1, "iscrowd": 0}
    assert content["annotations"] == [
        {
            **one,
            "id": 1,
            "image_id": 0,
            "bbox": [10, 20, 30, 60],
            "area": 1800,
            "visible_bbox": [10, 20, 30, 40],
        },
        {
            **one,
            "id": 2,
            "image_id": 0,
            "bbox": [-5, -6, 40, 80],
            "area": 3200,
            "visible_bbox": [0, 0, 20, 30],
        },
        {
            **one,
            "id": 3,
            "image_id": 2,
            "bbox": [1.5, 2, 3, 4],
            "area": 12,
            "visible_bbox": [10, 20, 30, 40],
        },
    ]


def test_what_is_ignored(convert):
    boxes = [
        {**PERSON, "tag": "mask"},
        {**PERSON, "extra": {"ignore": 1}},
        {**PERSON, "extra": {"ignore": 0}},
        {**PERSON, "head_attr": {"ignore": 1, "unsure": 1}},
        {"fbox": [1, 1, 5, 5]},  # no tag, no visible box
    ]
    content, text = convert(line("b", *boxes))
    assert [x["iscrowd"] for x in content["annotations"]] == [1, 1, 0, 0, 1]
    assert "visible_bbox" not in content["annotations"][4]
    assert "2 persons\n" in text
    assert "3 ignore regions: 2 not tagged as a person, 1 marked with extra.ignore" in text


def test_what_is_dropped_is_told(convert, folder):
    def box(*fbox, **more):
        return {**PERSON, "fbox": list(fbox), **more}

    ignored = {"extra": {"ignore": 1}}
    content, text = convert(
        line("b", box(1, 1, 0, 9), box(1, 1, 9, -1), box(1, 1, -2, 9, **ignored), box(5, 5, 9, 9)),
        line("c", box(60, 5, 9, 9), box(5, 5, 0.5, 9), box(-9, 5, 9, 9, tag="mask")),
        line("273278,c9db", box(1, 1, 9, 9, tag="mask")),
    )
    assert [x["bbox"] for x in content["annotations"]] == [
        [5, 5, 9, 9],
        [60, 5, 9, 9],
        [5, 5, 0.5, 9],
        [-9, 5, 9, 9],
        [1, 1, 9, 9],
    ]
    assert [x["id"] for x in content["annotations"]] == [1, 2, 3, 4, 5]
    assert [x.get("persons_without_area") for x in content["images"]] == [2, None, None]
    assert text.splitlines() == [
        f"wrote {folder}/annotations/val.json",
        "  3 images, 1 without a person",
        "  3 persons",
        "  2 ignore regions: 2 not tagged as a person, 0 marked with extra.ignore",
        "  dropped: 2 persons and 1 ignore regions without area; AP and MR still count such "
        "persons as missed",
        "  left out of training only: 1 persons and 1 ignore regions outside the image; "
        "1 persons and 0 ignore regions thinner than a pixel",
    ]


def test_ids_are_line_numbers(convert):
    content, _ = convert(line("b", PERSON), "", line("c", PERSON), " ")
    assert [x["id"] for x in content["images"]] == [0, 2]
    assert [x["image_id"] for x in content["annotations"]] == [0, 2]


def test_images_that_lie_on_their_side(convert, folder):
    """Detectron2 turns them when it reads them, and wants the size that they have then."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (70, 40)).save(folder / "Images" / "turned.jpg", exif=exif)
    content, _ = convert(line("turned"))
    assert (content["images"][0]["width"], content["images"][0]["height"]) == (40, 70)


def test_only_headers_are_read(convert, folder):
    whole = (folder / "Images" / "b.jpg").read_bytes()
    (folder / "Images" / "cut.jpg").write_bytes(whole[:-100])
    with pytest.raises(OSError):
        Image.open(folder / "Images" / "cut.jpg").load()
    assert convert(line("cut"))[0]["images"][0]["width"] == 120


WRONG = {
    "no JSON": ('{"ID": "b", "gtb', "is no JSON"),
    "bytes": (b'{"ID": "\xff"}', "is no JSON"),
    "a list": ("[1]", "has no ID"),
    "no ID": ('{"gtboxes": []}', "has no ID"),
    "a number": ('{"ID": 5, "gtboxes": []}', "has no ID"),
    "no boxes": ('{"ID": "c"}', "has no list of gtboxes"),
    "a box that is none": ('{"ID": "c", "gtboxes": [5]}', "has no list of gtboxes"),
    "no fbox": (line("c", {"tag": "person"}), "has an fbox or vbox that is not four numbers"),
    "short": (line("c", {**PERSON, "fbox": [1, 2, 3]}), "has an fbox or vbox that is not four"),
    "text": (line("c", {**PERSON, "vbox": [1, 2, 3, "4"]}), "has an fbox or vbox that is not"),
    "NaN": (line("c", {**PERSON, "fbox": [1, 2, 3, float("nan")]}), "has an fbox or vbox that"),
    "extra": (line("c", {**PERSON, "extra": [1]}), "has a box whose extra is not a dict"),
    "twice": (line("b"), "has the ID 'b' of line 1 again"),
    "missing": (line("zz"), r"needs the image .*Images/zz\.jpg, which is missing"),
}


@pytest.mark.parametrize("wrong, words", WRONG.values(), ids=WRONG.keys())
def test_wrong_lines_are_named(refuse, wrong, words):
    text = refuse(line("b", PERSON), "", wrong, line("273278,c9db"))
    assert re.search(rf"annotation_val\.odgt, line 3 {words}.*: fetch .*anew, or mend", text)


def test_other_mistakes(refuse, folder):
    (folder / "Images" / "text.jpg").write_text("no image")
    assert "line 1 needs the image" in (text := refuse(line("text")))
    assert "text.jpg, which cannot be read (UnidentifiedImageError" in text
    assert "annotation_val.odgt is empty: fetch it anew" in refuse("", "")
    assert "annotation_train.odgt': No such file" in refuse(line("b"), arguments=["train"])
    assert "no split 'test': give train, val" in refuse(line("b"), arguments=["val", "test"])


def test_a_failure_leaves_the_earlier_file(convert, folder):
    convert(line("b", PERSON))
    before = (folder / "annotations" / "val.json").read_bytes()
    with pytest.raises(SystemExit):
        convert(line("c"), "{")
    assert [x.name for x in (folder / "annotations").iterdir()] == ["val.json"]
    assert (folder / "annotations" / "val.json").read_bytes() == before


def test_both_splits_by_default(convert, folder):
    (folder / "annotation_train.odgt").write_text(line("c", PERSON))
    convert(line("b"), arguments=())
    assert {x.name for x in (folder / "annotations").iterdir()} == {"train.json", "val.json"}


def test_memory_does_not_grow_with_the_file(folder):
    module = runpy.run_path(str(SCRIPT))
    odgt, target = folder / "annotation_val.odgt", folder / "annotations" / "val.json"

    def peak(lines):
        for k in range(lines):
            image = folder / "Images" / f"{k}.jpg"
            image.unlink(missing_ok=True)
            image.hardlink_to(folder / "Images" / "b.jpg")
        odgt.write_text("\n".join(line(str(k), *[PERSON] * 50) for k in range(lines)))
        tracemalloc.start()
        module["convert"](odgt, folder / "Images", target)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    few, many = peak(30), peak(120)  # 30 fill all buffers
    assert odgt.stat().st_size > 400_000 and len(target.read_text()) > 400_000
    assert many - few < 50_000
