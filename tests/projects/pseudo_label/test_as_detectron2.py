"""What is exported of a teacher is what Detectron2's own evaluation finds of it, and scores."""

import json

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from generate_cases import write_teacher
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tiny_models import build
from whole_runs import register_few

from kd_d2.checkpoint import load_detector_weights
from kd_d2.engine import DistillationTrainer, load_config
from kd_d2.projects.pseudo_label.command_line import build_parser, run_stages

DATA = "trainer_shapes_val"


def found_by_detectron2(config, weights, opts, folder):
    """Scores of the evaluation, and its list of results."""
    cfg = load_config(config, opts)
    model = build(cfg).eval()
    load_detector_weights(model, weights)
    evaluator = COCOEvaluator(DATA, output_dir=str(folder), use_fast_impl=False)
    scores = inference_on_dataset(
        model, DistillationTrainer.build_test_loader(cfg, DATA), evaluator
    )
    return scores["bbox"], json.loads((folder / "coco_instances_results.json").read_text())


def table(results):
    """(n, 7) image, category, score, box, sorted."""
    rows = [
        (x["image_id"], x["category_id"], round(x["score"], 4), *(round(v, 2) for v in x["bbox"]))
        for x in results
    ]
    return np.array(sorted(rows))


@pytest.mark.parametrize("arch", ["RetinaNet", "FasterRCNN"])
def test_exported_results_are_detectron2s(arch, tmp_path):
    register_few(tmp_path / "data")
    (tmp_path / "teacher").mkdir()
    config, weights = write_teacher(tmp_path / "teacher", arch)
    node = "RETINANET" if arch == "RetinaNet" else "ROI_HEADS"
    opts = ["DATASETS.TEST", f"('{DATA}',)", "TEST.DETECTIONS_PER_IMAGE", "100"]
    opts += [f"MODEL.{node}.SCORE_THRESH_TEST", "0.05", "DATALOADER.NUM_WORKERS", "0"]
    scores, expected = found_by_detectron2(config, weights, opts, tmp_path)
    argv = ["all", "--images", DATA, "--teacher", f"big={config},{weights}", "--device", "cpu"]
    argv += ["--num-workers", "0", "--top-k", "100", "--output", str(tmp_path / "run")]
    names = MetadataCatalog.get(DATA).thing_classes
    # the teacher knows three of the six classes, by their numbers
    ids = tmp_path / "ids.json"
    ids.write_text(json.dumps({f"class {i}": i + 1 for i in range(len(names))}))
    assert run_stages(build_parser("x").parse_args([*argv, "--category-ids", str(ids)])) == 0
    results = json.loads((tmp_path / "run" / "export" / "results.json").read_text())
    ours, theirs = table(results), table(expected)
    assert len(ours) == len(theirs) > 20
    np.testing.assert_array_equal(ours[:, :2], theirs[:, :2])
    np.testing.assert_allclose(ours[:, 2], theirs[:, 2], atol=1e-4)
    np.testing.assert_allclose(ours[:, 3:], theirs[:, 3:], atol=0.02)
    truth = COCO(MetadataCatalog.get(DATA).json_file)
    evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert 100 * evaluation.stats[0] == pytest.approx(scores["AP"], abs=0.1)
    assert 100 * evaluation.stats[1] == pytest.approx(scores["AP50"], abs=0.1)
