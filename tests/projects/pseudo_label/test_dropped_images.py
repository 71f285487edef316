"""Images that the filter has dropped: exported apart, not learned, but not unlearned either."""

import json
import shutil

import pytest
import torch
from cases import Case, make_run
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.structures import Boxes, pairwise_ioa
from detectron2.utils.events import EventStorage
from relabeled_cases import CAR, HELMET, box, export_of, image, read
from tiny_models import build, tiny_cfg

from kd_d2.data.requirements import check_available
from kd_d2.data.weighted_labels import WeightedLabelMapper
from kd_d2.modeling.label_weights import weigh_labels
from kd_d2.projects.pseudo_label.export import ExportSettings, export_run
from kd_d2.projects.pseudo_label.run_folder import RunError
from kd_d2.projects.pseudo_label.shards import AMBIGUOUS, EMPTY, FAILED, UNCERTAIN, USED
from kd_d2.projects.pseudo_label.verify import verify

CASE = Case(
    status=[UNCERTAIN, USED, AMBIGUOUS, FAILED, EMPTY, UNCERTAIN, USED],
    kept=[(1, 5, 5, 25, 25, 0.9, 0), (2, 5, 5, 20, 20, 0.7, 1)],
    ignored=[
        (0, 8, 8, 30, 40, 0.45, 2),
        (1, 40, 5, 60, 25, 0.4, 0),
        (2, 30, 5, 50, 25, 0.8, 0),
        (4, 0, 0, 9, 9, 0.35, 1),
    ],
)


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path, CASE)


def content(run, name="dropped"):
    return json.loads((run.folder / "export" / f"{name}.json").read_text())


def ids(content):
    return [x["id"] for x in content["images"]]


def test_the_file_by_hand(run):
    export_run(run)
    found = content(run)
    assert ids(found) == [100, 102, 104, 105]  # the last one without any box
    assert [
        (x["id"], x["image_id"], x["category_id"], x["score"], x["ignore"], x["weight"])
        for x in found["annotations"]
    ] == [(1, 100, 3, 0.45, 1, 0), (2, 102, 1, 0.8, 1, 0), (3, 102, 2, 0.7, 1, 0),
          (4, 104, 2, 0.35, 1, 0)]  # fmt: skip
    assert found["info"]["description"].startswith("Ignore boxes of dropped images, made by")
    assert found["categories"] == content(run, "pseudo")["categories"]
    assert ids(content(run, "pseudo")) == ids(content(run, "ignore")) == [101, 106]
    assert verify(run) == []


def test_other_readers_see_what_they_have_seen(run):
    """The files beside it do not depend on it."""
    export_run(run)
    path = run.folder / "export" / "pseudo.json"
    records = load_coco_json(str(path), run.root)
    assert [(x["image_id"], len(x["annotations"])) for x in records] == [(101, 1), (106, 0)]
    name = f"pseudo_labels:{run.folder / 'export'}"
    check_available({name: "here"})
    assert [x["image_id"] for x in DatasetCatalog.get(name)] == [101, 106]


@pytest.mark.parametrize("ignore", ["separate", "inline", "none"])
def test_where_ignore_boxes_go(run, ignore):
    export_run(run)
    expected = content(run)["annotations"]
    export_run(run, ExportSettings(ignore=ignore))
    there = (run.folder / "export" / "dropped.json").exists()
    assert there == (ignore != "none")
    assert not there or content(run)["annotations"] == expected
    assert ids(content(run, "pseudo")) == [101, 106]


def test_cut_into_files_by_themselves(run):
    export_run(run, ExportSettings(max_images_per_file=3))
    names = sorted(x.name for x in (run.folder / "export").glob("*.json"))
    assert names == [
        "dropped_000.json", "dropped_001.json", "ignore.json", "provenance.json", "pseudo.json",
        "results.json",
    ]  # fmt: skip
    parts = [content(run, f"dropped_00{k}") for k in range(2)]
    assert [ids(x) for x in parts] == [[100, 102, 104], [105]]
    assert [len(x["annotations"]) for x in parts] == [4, 0]


@pytest.mark.parametrize("number", [1, 3])
def test_a_filter_json_that_does_not_fit_its_shards(run, number):
    path = run.folder / "filter.json"
    path.write_text(path.read_text().replace('"uncertain": 2', f'"uncertain": {number}'))
    with pytest.raises(RunError, match=f"and of {number + 2} that are dropped"):
        export_run(run, ExportSettings(max_images_per_file=2))
    assert not (run.folder / "export" / "dropped.json").exists()


def test_a_changed_file_is_a_fault(run):
    export_run(run)
    path = run.folder / "export" / "dropped.json"
    path.write_text(path.read_text().replace("0.35", "0.36"))
    [fault] = verify(run)
    assert "dropped.json was changed" in fault


# ---- an image that people have labelled, but not its helmet, of which the teacher was not sure

UNSURE = [16, 4, 78, 58]
HEADS = {
    "RetinaNet": lambda model: (model.head.cls_score, 2),
    "FCOS": lambda model: (model.head.cls_score, 2),
    "GFL": lambda model: (model.head.cls_score, 2),
    "FasterRCNN": lambda model: (model.proposal_generator.rpn_head.objectness_logits, 1),
}


def slopes(arch, record):
    """Of the losses in the class scores: (R, K) with the anchors (R, 4)."""
    cfg = tiny_cfg(arch)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE = 10_000  # all anchors
    if arch != "FasterRCNN":
        cfg.MODEL[arch.upper()].NUM_CLASSES = 2
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (60,), "none"
    cfg.MODEL.LABEL_WEIGHTS.ENABLED = cfg.MODEL.LABEL_WEIGHTS.IGNORE = True
    torch.manual_seed(0)
    model = build(cfg).train()
    weigh_labels(model, cfg)
    layer, num_scores = HEADS[arch](model)
    outputs, anchors = [], []
    layer.register_forward_hook(lambda _, __, out: outputs.append(out))
    generator = getattr(model, "proposal_generator", model).anchor_generator
    generator.register_forward_hook(lambda _, __, out: anchors.extend(out))
    with EventStorage():
        loss = sum(model([WeightedLabelMapper(cfg)(record) for _ in range(2)]).values())
    # (2, A * K, H, W) -> (H * W * A, K)
    grads = torch.autograd.grad(loss, outputs)
    of_level = [x[0].permute(1, 2, 0).reshape(-1, num_scores) for x in grads]
    return torch.cat(of_level), Boxes.cat(anchors)


@pytest.mark.parametrize("arch", HEADS)
def test_an_uncertain_object_is_not_unlearned(arch, register, tmp_path):
    kept = [(0, 40, 5, 60, 25, 0.9, HELMET)]
    ignored = [(1, *UNSURE, 0.45, HELMET), (1, 0, 30, 12, 42, 0.45, CAR)]
    export = export_of(tmp_path, [USED, UNCERTAIN], kept, ignored)
    without = tmp_path / "without"
    shutil.copytree(export, without, ignore=shutil.ignore_patterns("dropped.json"))
    cars = [image(tmp_path, k, box(1, 0, 0, 12, 12)) for k in range(2)]
    labelled = register("dropped_people", cars)
    pushed = []
    for folder in (export, without):
        view = {"missing": "pseudo", "pseudo_labels": str(folder)}
        record = read(tmp_path, datasets=[labelled], **view)[1]
        assert record["image_id"] == 101
        grad, anchors = slopes(arch, record)
        share = pairwise_ioa(Boxes(torch.tensor([UNSURE]).float()), anchors)[0]
        inside = share >= 0.5
        helmet = grad[:, -1].abs()  # classes: car, helmet; regions have one score
        assert 0 < inside.sum() < len(inside) and (helmet[~inside] > 0).any()
        pushed.append((helmet[inside] > 0).float().mean().item())
    learned, unlearned = pushed
    assert learned == 0 and unlearned == 1
    assert {a["category_id"] for a in record["annotations"]} == {0}
