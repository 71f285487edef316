"""The check sheet: its files, and what it says."""

import zipfile
from xml.etree import ElementTree

import numpy as np
import pytest
from cases import Case, make_run, random_case
from html_page import Page
from PIL import Image

from kd_d2.config.rules import ConfigError
from kd_d2.projects.pseudo_label.run_folder import RunError
from kd_d2.projects.pseudo_label.shards import FAILED, UNCERTAIN, USED
from kd_d2.projects.pseudo_label.sheet import STRATA, SheetSettings, write_sheet
from kd_d2.projects.pseudo_label.sheet_cells import SIDE, CellPainter


def test_what_is_solid_and_what_is_dashed(tmp_path, monkeypatch):
    sure, doubted = (0, 1, 1, 20, 20, 0.9, 0, 0, 2), (0, 30, 1, 50, 20, 0.8, 0, 1, 1)
    ignored, low = (0, 1, 30, 20, 50, 0.4, 1), (0, 30, 30, 50, 50, 0.2, 2)
    case = Case(status=[USED], kept=[sure, doubted], ignored=[ignored], merged=[low])
    views = []

    def paint(painter, view):
        views.append([x.box[:, :2].tolist() for x in (view.solid, view.dashed, view.focus)])
        return np.zeros((SIDE, SIDE, 3), np.uint8)

    monkeypatch.setattr(CellPainter, "paint", paint)
    run = make_run(tmp_path, case)
    page = Page(write_sheet(run, SheetSettings(cells=3))[0].read_text())
    kept = [[1, 1], [30, 1]]
    assert views == [
        [kept, [[1, 30]], []],  # random
        [kept, [[1, 30]], []],  # most boxes
        [kept, [[1, 30]], [[30, 1]]],  # lowest kept cat
        [kept, [[1, 30]], [[1, 30]]],  # highest dropped dog: an ignore box
        [kept, [[30, 30], [1, 30]], [[30, 30]]],  # highest dropped bird: not even that
        [[[1, 1]], [[30, 1]], []],  # disagreement
        [kept, [[1, 30]], [[1, 1]]],  # rarest: the best cat
    ]
    for words in (
        *("2 boxes, 1 ignored", "cat 0.800, kept from 0.5", "dog 0.400, below 0.6: ignore box"),
        *(
            "bird 0.200, below 0.5: dropped",
            "1 of 2 boxes in doubt",
            "cat 0.90, one of 2 in the run",
        ),
    ):
        assert words in page.words


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    case = random_case(8)
    case.status = [USED] * 6 + [UNCERTAIN, FAILED]
    case.kept = [r for r in case.kept if r[0] < 6]
    case.merged = [r for r in case.merged if r[0] < 7]
    run = make_run(tmp_path_factory.mktemp("written"), case)
    records = list(run.images())
    with open(records[2].file_name, "w") as f:
        f.write("broken since")
    settings = SheetSettings(cells=6)
    return run, settings, write_sheet(run, settings)


def test_the_files(written):
    run, _, paths = written
    names = [x.name for x in paths]
    assert names[0] == "sheet.html" and names[-1] == "cvat.zip"
    assert "random_00.png" in names and all(x.exists() for x in paths)
    width, height = Image.open(run.folder / "sheet" / "random_00.png").size
    assert width > 5 * SIDE and height > 2 * SIDE


def test_the_page_needs_no_other_file(written):
    page = Page(written[2][0].read_text())
    pictures = [x for x in page.targets if not x.startswith("#")]
    assert pictures and all(x.startswith("data:image/jpeg;base64,") for x in pictures)
    assert [x for x in page.targets if x.startswith("#")] == [f"#{x}" for x in STRATA]
    words = " ".join(page.words)
    assert "id 102, part0/image_2.png" in words and "Random (6)" in words


def test_a_task_for_cvat_of_the_same_images(written):
    run, settings, paths = written
    with zipfile.ZipFile(paths[-1]) as archive:
        tree = ElementTree.fromstring(archive.read("annotations.xml"))
    words = " ".join(Page(paths[0].read_text()).words)
    names = [x.name for x in run.images() if f"id {x.id}, " in words]
    assert [x.get("name") for x in tree.findall("image")] == names
    assert len(tree.findall("image/box")) > 3


def test_the_same_sheet_again(written):
    run, settings, paths = written
    before = {x.name: x.read_bytes() for x in paths}
    (run.folder / "sheet" / "random_07.png").write_text("of a larger sheet before")
    assert {x.name: x.read_bytes() for x in write_sheet(run, settings)} == before
    assert not (run.folder / "sheet" / "random_07.png").exists()


@pytest.mark.parametrize("change", [{"cells": 0}, {"most_cells": 0}, {"seed": -1}])
def test_wrong_settings(change):
    with pytest.raises(ConfigError, match=f"{next(iter(change))} is"):
        SheetSettings(**change)


def test_a_run_that_was_not_filtered(tmp_path):
    run = make_run(tmp_path, Case(status=[USED]))
    (run.folder / "filter.json").unlink()
    with pytest.raises(RunError, match="run the stage filter first"):
        write_sheet(run)
