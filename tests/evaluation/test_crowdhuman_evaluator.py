"""CrowdHumanEvaluator: from a detector's output to the three numbers, also in two processes."""

import json
import math

import pytest
import torch
from crowd_cases import (
    WORKED_EXAMPLE,
    coco_content,
    evaluate,
    found,
    is_close,
    random_images,
    register_json,
    slow_ap_and_mr,
    slow_metrics,
)
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils import comm
from pycocotools.coco import COCO

from kd_d2 import get_kd_cfg
from kd_d2.engine.evaluation import build_evaluator
from kd_d2.engine.launch import _launch_on_cpu
from kd_d2.evaluation import CrowdHumanEvaluator

EXPECTED = {"AP": 32.29167, "MR": 58.75358, "JI": 66.66664}


@pytest.fixture
def registered(tmp_path):
    """Registers JSON content under a name of its own."""
    names = []

    def registered(content, **metadata):
        names.append(f"crowd_set_{len(names)}")
        register_json(names[-1], tmp_path, content, **metadata)
        return names[-1]

    yield registered
    for name in names:
        MetadataCatalog.remove(name)


@pytest.fixture
def example(registered):
    return registered(coco_content(WORKED_EXAMPLE))


def test_worked_example(example):
    results = evaluate(CrowdHumanEvaluator(example), WORKED_EXAMPLE)
    assert results == {"bbox": pytest.approx(EXPECTED, abs=5e-6)}
    assert all(type(x) is float for x in results["bbox"].values())


@pytest.mark.parametrize("seed", range(8))
def test_random_sets_equal_the_definition(registered, seed):
    images = random_images(seed)
    name = registered(coco_content(images))
    results = evaluate(CrowdHumanEvaluator(name), images)["bbox"]
    expected = slow_metrics(images)
    assert is_close(results, expected) and 1 < expected["AP"] < 99 and 0 < expected["JI"] < 99


@pytest.mark.parametrize("seed", range(4))
def test_ap_and_mr_of_ties_equal_the_definition(registered, seed):
    images = random_images(seed, grid=8)
    name = registered(coco_content(images))
    results = evaluate(CrowdHumanEvaluator(name), images)["bbox"]
    ap, mr = slow_ap_and_mr(images)
    assert is_close(results, {"AP": 100 * ap, "MR": 100 * mr})


def test_images_that_were_not_run_count(example):
    empty = [WORKED_EXAMPLE[0], {**WORKED_EXAMPLE[1], "detections": []}]
    results = evaluate(CrowdHumanEvaluator(example), WORKED_EXAMPLE, ids=[100])["bbox"]
    assert is_close(results, slow_metrics(empty))
    assert evaluate(CrowdHumanEvaluator(example), [])["bbox"] == {"AP": 0, "MR": 100, "JI": 0}


def test_a_part_of_the_set(example):
    evaluator = CrowdHumanEvaluator(example)
    evaluate(evaluator, WORKED_EXAMPLE)
    results = evaluator.evaluate(img_ids=[101])["bbox"]
    assert is_close(results, slow_metrics(WORKED_EXAMPLE[1:]))


def test_reset_forgets(example):
    evaluator = CrowdHumanEvaluator(example)
    evaluate(evaluator, WORKED_EXAMPLE)
    evaluator.reset()
    assert evaluator.evaluate()["bbox"]["AP"] == 0


def test_detections_are_rounded(registered):
    """As x, y, w, h to a tenth of a pixel: 0.04 + 10.04 has the corner 10.0, not 10.1."""
    image = {"size": (200, 100), "objects": [(0, 0, 20, 10)], "ignored": [], "detections": []}
    name = registered(coco_content([image] * 2))

    def ji(*detection):
        evaluator = CrowdHumanEvaluator(name)
        evaluator.process([{"image_id": 100}], [found([detection])])
        return evaluator.evaluate()["bbox"]["JI"]

    assert ji(0, 0, 10.04, 10, 0.9) == 0 and ji(0, 0, 10.06, 10, 0.9) > 0
    assert ji(0.04, 0, 10.04, 10, 0.9) == 0
    assert ji(0, 0, 20, 10, 0.000004) == 0 and ji(0, 0, 20, 10, 0.000006) > 0


def test_other_precisions_are_read(example):
    for dtype in (torch.float32, torch.bfloat16):
        evaluator = CrowdHumanEvaluator(example)
        for k, image in enumerate(WORKED_EXAMPLE, 100):
            output = found(image["detections"])["instances"]
            output.pred_boxes.tensor = output.pred_boxes.tensor.to(dtype)
            output.scores = output.scores.to(dtype)
            evaluator.process([{"image_id": k}], [{"instances": output}])
        assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(EXPECTED["AP"], abs=1e-4)


def test_persons_without_area_are_missed_by_ap_and_mr_only(registered):
    content = coco_content(WORKED_EXAMPLE)
    content["images"][1]["persons_without_area"] = 2
    results = evaluate(CrowdHumanEvaluator(registered(content)), WORKED_EXAMPLE)["bbox"]
    ap, mr = slow_ap_and_mr(WORKED_EXAMPLE, more_objects=2)
    assert is_close(results, {"AP": 100 * ap, "MR": 100 * mr})
    assert results["JI"] == pytest.approx(EXPECTED["JI"], abs=5e-6)
    # nothing else on an image does not hide them
    empty = {"size": (200, 100), "objects": [], "ignored": [], "detections": []}
    content = coco_content([*WORKED_EXAMPLE, empty])
    content["images"][2]["persons_without_area"] = 2
    results = evaluate(CrowdHumanEvaluator(registered(content)), [*WORKED_EXAMPLE, empty])["bbox"]
    assert is_close(results, {"AP": 100 * ap})


def test_several_classes_and_their_mean(registered):
    """Class 7 is the worked example, class 9 other images, class 8 has nothing at all."""
    other = random_images(0, count=2)
    content, more = coco_content(WORKED_EXAMPLE, 7), coco_content(other, 9)
    content["annotations"] += more["annotations"]
    content["categories"] = [{"id": k, "name": f"kind {k}"} for k in (7, 8, 9)]
    evaluator = CrowdHumanEvaluator(registered(content), task="crowd")
    for k, pair in enumerate(zip(WORKED_EXAMPLE, other, strict=True), 100):
        detections = [(0, x) for x in pair[0]["detections"]] + [
            (2, x) for x in pair[1]["detections"]
        ]
        detections.append((1, (0, 0, 10, 10, 0.9)))  # a false alarm of a class without objects
        output = found([x for _, x in detections], classes=[c for c, _ in detections])
        evaluator.process([{"image_id": k}], [output])
    # without names the classes that occur are counted
    results = evaluator.evaluate()["crowd"]
    assert math.isnan(results["AP-1"]) and math.isnan(results["JI-1"])
    slow = slow_metrics(WORKED_EXAMPLE), slow_metrics(other)
    for key in ("AP", "MR", "JI"):
        assert results[f"{key}-0"] == pytest.approx(slow[0][key])
        assert results[f"{key}-2"] == pytest.approx(slow[1][key])
        assert results[key] == pytest.approx((slow[0][key] + slow[1][key]) / 2)
    MetadataCatalog.get("crowd_set_0").thing_classes = ["a", "b", "c"]
    assert set(evaluator.evaluate()["crowd"]) == {
        *("AP", "MR", "JI"),
        *(f"{key}-{name}" for key in ("AP", "MR", "JI") for name in "abc"),
    }


def test_sets_without_a_file(tmp_path):
    """Records of one's own, with boxes in another mode."""
    records = [
        {
            "image_id": k,
            "width": image["size"][0],
            "height": image["size"][1],
            "annotations": [
                {
                    "bbox": [x, y, x + w, y + h],
                    "bbox_mode": BoxMode.XYXY_ABS,
                    "category_id": 0,
                    "iscrowd": crowd,
                }
                for key, crowd in (("objects", 0), ("ignored", 1))
                for x, y, w, h in image[key]
            ],
        }
        for k, image in enumerate(WORKED_EXAMPLE, 100)
    ]
    DatasetCatalog.register("crowd_records", lambda: records)
    try:
        results = evaluate(CrowdHumanEvaluator("crowd_records"), WORKED_EXAMPLE)
        assert results["bbox"] == pytest.approx(EXPECTED, abs=5e-6)
        del records[1]["annotations"]
        assert evaluate(CrowdHumanEvaluator("crowd_records"), WORKED_EXAMPLE) == {}
    finally:
        DatasetCatalog.remove("crowd_records")
        MetadataCatalog.remove("crowd_records")


def test_sets_without_labels_are_not_evaluated_but_written(registered, tmp_path):
    content = coco_content(WORKED_EXAMPLE)
    del content["annotations"]
    evaluator = CrowdHumanEvaluator(registered(content), output_dir=str(tmp_path / "out"))
    assert evaluate(evaluator, WORKED_EXAMPLE) == {}
    assert len(json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())) == 6


def test_the_file_is_cocos(registered, tmp_path):
    name = registered(coco_content(WORKED_EXAMPLE), thing_dataset_id_to_contiguous_id={1: 0})
    evaluator = CrowdHumanEvaluator(name, output_dir=str(tmp_path))
    evaluate(evaluator, WORKED_EXAMPLE)
    results = tmp_path / "coco_instances_results.json"
    lines = json.loads(results.read_text())
    first = {"image_id": 100, "category_id": 1, "bbox": [10.0, 10.0, 40.0, 80.0], "score": 0.95}
    assert lines[0] == first and len(lines) == 6
    assert len(COCO(MetadataCatalog.get(name).json_file).loadRes(str(results)).anns) == 6
    evaluator.reset()
    evaluator.evaluate()
    assert json.loads(results.read_text()) == []


def test_foreign_detections_are_refused(registered):
    name = registered(coco_content(WORKED_EXAMPLE), thing_classes=["person"])
    evaluator = CrowdHumanEvaluator(name)
    evaluator.process([{"image_id": 7}], [found([])])
    with pytest.raises(ValueError, match="for the image 7, which .*'crowd_set_0' does not have"):
        evaluator.evaluate()
    evaluator.reset()
    evaluator.process([{"image_id": 100}], [found([(0, 0, 9, 9, 0.5)], classes=[5])])
    with pytest.raises(ValueError, match="the class 5, but .*'crowd_set_0' has only 1"):
        evaluator.evaluate()


# ---- the engine


def test_data_sets_choose_it_and_a_key_adds_it(registered, tmp_path):
    cfg = get_kd_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)
    name = registered(coco_content(WORKED_EXAMPLE), evaluator_type="crowdhuman")
    evaluator = build_evaluator(cfg, name)
    assert isinstance(evaluator, CrowdHumanEvaluator)
    assert set(evaluate(evaluator, WORKED_EXAMPLE)) == {"bbox"}
    assert (tmp_path / "inference" / "coco_instances_results.json").is_file()

    other = registered(coco_content(WORKED_EXAMPLE), evaluator_type="coco")
    assert set(evaluate(build_evaluator(cfg, other), WORKED_EXAMPLE)) == {"bbox"}
    cfg.TEST.CROWD_METRICS = True
    both = evaluate(build_evaluator(cfg, other), WORKED_EXAMPLE)
    assert set(both) == {"bbox", "crowd"} and "AP50" in both["bbox"]
    assert both["crowd"] == pytest.approx(EXPECTED, abs=5e-6)
    assert isinstance(build_evaluator(cfg, name), CrowdHumanEvaluator)


# ---- several processes


def worker(folder):
    images = random_images(3)
    own = folder / f"data{comm.get_rank()}"  # neither reads what the other is writing
    own.mkdir()
    register_json("crowd_ranks", own, coco_content(images))
    ids = range(100 + comm.get_rank(), 110, 2)  # nobody sees the last two
    results = evaluate(CrowdHumanEvaluator("crowd_ranks"), images, ids)
    torch.save(results, folder / f"rank{comm.get_rank()}.pth")


def test_two_processes_are_one(tmp_path):
    _launch_on_cpu(worker, 2, 1, 0, None, (tmp_path,))
    results = [torch.load(tmp_path / f"rank{r}.pth", weights_only=False) for r in (0, 1)]
    assert results[1] == {}
    images = random_images(3)
    for image in images[-2:]:
        image["detections"] = []
    assert is_close(results[0]["bbox"], slow_metrics(images))
