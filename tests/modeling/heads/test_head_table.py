"""README's table of heads and pairs is what happens."""

import re
from pathlib import Path

import pytest
import torch
from tiny_models import build, random_batch

README = Path(__file__).resolve().parents[3] / "README.md"
# column of the table -> (student, teacher) that stand for it
PAIRS = {
    "one location a cell, same kind": [
        (d, d) for d in ("FCOS", "AutoAssign", "ATSS", "GFL", "DDOD")
    ],
    "of different kinds": [("FCOS", "ATSS"), ("GFL", "AutoAssign"), ("DDOD", "FCOS")],
    "RetinaNet": [("RetinaNet", "RetinaNet")],
    "FCOS ← RetinaNet": [("FCOS", "RetinaNet")],
    "RetinaNet ← R-CNN": [("RetinaNet", "FasterRCNN")],
    "R-CNN ← RetinaNet": [("FasterRCNN", "RetinaNet")],
    "R-CNN": [("FasterRCNN", "FasterRCNN"), ("MaskRCNN", "CascadeRCNN")],
}
EXCEPT = {
    ("DKD", "AutoAssign", "AutoAssign"): "d",
    ("RoIBoxKD", "MaskRCNN", "CascadeRCNN"): "f",
}
# the footnotes, in the words of the messages
REASONS = {
    "a": "one location a cell",
    "b": "towers of a dense detector|scores and boxes of locations|a GeneralizedRCNN has no towers",
    "c": "compares equal locations",
    "d": "assigns none",
    "e": "box head makes of a region",
    "f": "one box for all classes",
}


def table():
    """(head, column) -> "" or the reason why it does not work, as README says."""
    lines = iter(README.read_text().splitlines())
    header = next(line for line in lines if line.startswith("| head |"))
    columns = [cell.strip() for cell in header.strip("|").split("|")][1:]
    next(lines)
    refused = {}
    for line in lines:
        if not line.startswith("|"):
            return columns, refused
        head, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        (head,) = re.findall(r"`(\w+)`", head)
        refused |= {
            (head, c): "" if cell.startswith("✓") else cell.split()[1]
            for c, cell in zip(columns, cells, strict=True)
        }
    return columns, refused


COLUMNS, REFUSED = table()
CASES = [(head, *pair) for head, column in REFUSED for pair in PAIRS[column]]


def test_the_table_is_whole():
    from kd_d2.modeling import DISTILL_HEAD_REGISTRY

    assert list(PAIRS) == COLUMNS
    of_lgd = {"InstructiveFeatures"}
    assert {head for head, _ in REFUSED} == {name for name, _ in DISTILL_HEAD_REGISTRY} - of_lgd


@pytest.mark.parametrize("head,student,teacher", CASES)
def test_works_or_is_refused_in_a_sentence(head, student, teacher, frozen_cfg, storage):
    cfg = frozen_cfg(student, teacher)
    cfg.MODEL.KD.HEADS = [head]
    cfg.MODEL.KD.CROSSKD.BLOCKS = 1
    column = next(c for c, pairs in PAIRS.items() if (student, teacher) in pairs)
    batch = random_batch(masks=student == "MaskRCNN")
    reason = EXCEPT.get((head, student, teacher), REFUSED[head, column])
    if reason:
        with pytest.raises(ValueError, match=REASONS[reason]) as error:
            build(cfg)
        assert str(error.value).startswith(head) and "\n" not in str(error.value)
        return
    model = build(cfg).train()
    own = {name for name in model.student(batch)}
    losses = model(batch)
    added = [losses[name] for name in losses if name not in own]
    assert added and all(torch.isfinite(loss) for loss in added)
    sum(added).backward()
    assert any(p.grad is not None and p.grad.any() for p in model.student.parameters())
