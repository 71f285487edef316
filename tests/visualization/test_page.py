import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from kd_d2.visualization.detections import Boxes2D
from kd_d2.visualization.level_features import FeatureTile
from kd_d2.visualization.naming import ClassNames
from kd_d2.visualization.observation import Observation
from kd_d2.visualization.page import PicturePage
from kd_d2.visualization.strip import Look

NAMES = ClassNames(["<cat>", "dog"])


def boxes(*scores):
    n = len(scores)
    return Boxes2D(np.tile([2.0, 3, 20, 25], (n, 1)), np.arange(n) % 2, np.array(scores))


def observation(name="a & b.png", notes=(), **kwargs):
    tile = FeatureTile("student", np.zeros((5, 5, 3)), "50 %")
    image = np.zeros((32, 40, 3), np.uint8)
    return Observation(
        *(name, image, boxes(1, 1), boxes(0.75)), {"p3": [tile]}, notes=list(notes), **kwargs
    )


class Links(HTMLParser):
    """Everything that a page fetches or leads to, and the tags that must be closed."""

    def __init__(self, text):
        super().__init__()
        self.links, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.links += [v for k, v in attrs if k in ("src", "href")]
        if tag not in ("img", "meta", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_needs_nothing_outside_its_folder(tmp_path):
    page = PicturePage(tmp_path / "new" / "folder", Look(NAMES), "components")
    page.add(observation())
    page.add(observation("../c.png", teacher=boxes(0.5, 0.25)))
    sheet, index = page.write("Title", "sub <title>", ["x.png cannot be read <b>"])
    folder = tmp_path / "new" / "folder"
    assert (sheet, index) == (folder / "contact_sheet.png", folder / "index.html")
    text = index.read_text()
    links = Links(text)
    assert not links.open
    pictures = ["pictures/001_a_b.png", "pictures/002_c.png"]
    assert set(links.links) == {"contact_sheet.png", *pictures}
    sizes = [Image.open(folder / name).size for name in pictures]
    assert Image.open(sheet).size == (max(w for w, _ in sizes), sum(h for _, h in sizes) + 2)
    assert "http" not in text and not re.search(r"@import|url\(|<script", text)
    assert "a &amp; b.png" in text and "sub &lt;title&gt;" in text
    assert "x.png cannot be read &lt;b&gt;" in text
    assert "<td>1 &lt;cat&gt;<br>2 dog</td><td>&lt;cat&gt; 75 %</td>" in text
    assert "<td>&lt;cat&gt; 50 %<br>dog 25 %</td>" in text
    assert "Attention" not in text  # as nobody pays any


def test_notes_of_all_images_stand_at_the_top_and_once(tmp_path):
    page = PicturePage(tmp_path, Look(NAMES), "energy")
    page.add(observation("a.png", ["of all"]))
    page.add(observation("b.png", ["of all", "of b alone"]))
    text = page.write("t", "s", [])[1].read_text()
    assert text.count("of all") == text.count("of b alone") == 1
    assert text.index("of all") < text.index("a.png") < text.index("of b alone")
    assert "Not shown" not in text


def test_files_are_replaced_whole(tmp_path, monkeypatch):
    for _ in range(2):
        page = PicturePage(tmp_path, Look(NAMES), "components")
        page.add(observation())
        page.write("t", "s", [])
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert len(before) == 3

    def fails(self, file, **kwargs):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fails)
    with pytest.raises(OSError, match="disk full"):
        PicturePage(tmp_path, Look(NAMES), "components").add(observation())
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
