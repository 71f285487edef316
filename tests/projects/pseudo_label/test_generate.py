"""Generating as a whole: what is found is what the teacher finds, where images can be read."""

import argparse
import json
import shutil

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from generate_cases import Case, bad_files, raw_bytes, write_image, write_teacher
from PIL import Image
from tiny_models import build

from kd_d2.config.rules import ConfigError
from kd_d2.engine import load_config
from kd_d2.projects.pseudo_label import inference
from kd_d2.projects.pseudo_label.generate import (
    GenerateSettings,
    add_arguments,
    from_arguments,
    generate,
)
from kd_d2.projects.pseudo_label.inference import NOT_FINITE
from kd_d2.projects.pseudo_label.run_folder import RunError, RunFolder
from kd_d2.projects.pseudo_label.shards import FAILED, USED, ShardError, read_shard
from kd_d2.projects.pseudo_label.sources import SourceError
from kd_d2.projects.pseudo_label.teachers import TeacherSource, build_detector, teacher_config


@pytest.fixture
def case(tmp_path):
    return Case.make(tmp_path, images=4)


def detections(run, teacher=0):
    """Of all images: number -> (boxes, scores, classes), and (height, width)."""
    found, sizes = {}, {}
    for shard in run.shards:
        contents = read_shard(run.raw(run.teachers[teacher]), shard)
        for i in range(shard.first, shard.last):
            x = contents.detections[contents.detections.image == i]
            found[i] = (x.box, x.score, x.category)
            sizes[i] = tuple(contents.sizes[i - shard.first])
    return found, sizes


def own_inference(case, run, batch=1, teacher=0, floor=0.05, topk=20):
    """As somebody would write it who has Detectron2 only, with batches cut at shards."""
    _, config, weights = case.teachers[teacher]
    cfg = load_config(config)
    arch = cfg.MODEL.META_ARCHITECTURE
    node = cfg.MODEL["ROI_HEADS" if arch == "GeneralizedRCNN" else arch.upper()]
    node.SCORE_THRESH_TEST, cfg.TEST.DETECTIONS_PER_IMAGE = floor, topk
    model, mapper = build(cfg).eval(), DatasetMapper(cfg, is_train=False)
    model.load_state_dict(torch.load(weights, weights_only=True)["model"])
    found = []
    for shard in run.shards:
        inputs = [mapper({"file_name": x.file_name}) for x in run.images(shard)]
        for start in range(0, len(inputs), batch):
            with torch.no_grad():
                found += [x["instances"] for x in model(inputs[start : start + batch])]
    return found


def assert_as_detectron2_finds(found, expected):
    assert len(found) == len(expected)
    assert sum(map(len, expected)) > 0
    for i, x in enumerate(expected):
        order = np.argsort(-x.scores.numpy(), kind="stable")
        for a, b in zip(found[i], (x.pred_boxes.tensor, x.scores, x.pred_classes), strict=True):
            assert np.array_equal(a, b.numpy()[order])


@pytest.mark.parametrize("arch", ["RetinaNet", "FCOS", "ATSS", "GFL", "FasterRCNN", "MaskRCNN"])
@pytest.mark.parametrize("batch", [1, 2])
def test_detections_are_the_models_own_in_original_pixels(tmp_path, arch, batch):
    case = Case.make(tmp_path, images=3, archs=(arch,))
    exif = Image.Exif()
    exif[274] = 6
    write_image(tmp_path / "images" / "turned.jpg", 60, 120, seed=5, exif=exif)
    run, report = case.generate(batch=batch, topk=15, floor=0.1)
    found, sizes = detections(run)
    assert sizes == {0: (64, 96), 1: (72, 96), 2: (80, 96), 3: (120, 60)}
    assert_as_detectron2_finds(found, own_inference(case, run, batch, topk=15, floor=0.1))
    boxes, scores, _ = found[3]
    assert boxes[:, 2].max() <= 60 and boxes[:, 3].max() > 60
    assert all(len(s) <= 15 for _, s, _ in found.values())
    if arch in ("RetinaNet", "FasterRCNN", "MaskRCNN"):  # others multiply what passes by a quality
        assert all((s > 0.1).all() for _, s, _ in found.values())
    assert report.images == 4 and report.done_here == 4 and report.failed == 0
    assert report.detections == sum(len(s) for _, s, _ in found.values())


def test_batches_do_not_span_shards_and_keep_their_place(case):
    run, _ = case.generate(batch=2, shard_size=3)
    assert_as_detectron2_finds(detections(run)[0], own_inference(case, run, 2))


def test_several_teachers(tmp_path):
    case = Case.make(tmp_path, images=4, archs=("RetinaNet", "FCOS"))
    run, report = case.generate()
    assert [t.classes for t in run.teachers] == [("class 0", "class 1", "class 2")] * 2
    for teacher in (0, 1):
        assert_as_detectron2_finds(
            detections(run, teacher)[0], own_inference(case, run, teacher=teacher)
        )
        contents = read_shard(run.raw(run.teachers[teacher]), run.shards[0])
        assert set(contents.detections.teacher) == {teacher}
        assert np.isnan(contents.detections.agreement).all()
        assert set(contents.detections.votes) == {1}
    assert report.done_here == 8


def test_masks_are_not_computed_but_their_weights_are_wanted(tmp_path):
    (tmp_path / "x").mkdir()
    source = TeacherSource("m", *write_teacher(tmp_path / "x", "MaskRCNN"))
    model = build_detector(teacher_config(source, GenerateSettings()))
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    with torch.no_grad():
        (found,) = model([{"image": image, "height": 64, "width": 64}])
    assert not found["instances"].has("pred_masks")


@pytest.mark.parametrize("batch", [1, 2])
def test_bad_images_in_the_list(tmp_path, batch):
    case = Case.make(tmp_path, images=3)
    reasons = bad_files(tmp_path / "images")
    bad = {k for k in reasons if k not in ("absent.jpg", "folder.jpg")}
    shutil.rmtree(tmp_path / "images" / "folder.jpg")
    run, report = case.generate(batch=batch, shard_size=5, max_failed_share=1.0)
    images = list(run.images())
    names = [x.name for x in images]
    assert report.failed == len(bad) and report.images == len(bad) + 5
    for shard in run.shards:
        contents = read_shard(run.raw(run.teachers[0]), shard)
        status = contents.image_status(shard.first)
        for i in range(shard.first, shard.last):
            is_bad = names[i] in bad
            assert (i in contents.failed) == is_bad
            assert status[i - shard.first] == (FAILED if is_bad else USED)
            assert (contents.sizes[i - shard.first] > 0).all() != is_bad
            assert not (is_bad and (contents.detections.image == i).any())
    lines = [json.loads(x) for x in (run.folder / "errors.jsonl").read_text().splitlines()]
    assert [x["path"] for x in lines] == sorted(bad)
    assert all(reasons[x["path"]] in x["reason"] for x in lines)
    by_name = {x.name: s.name for s in run.shards for x in run.images(s)}
    assert all(x["shard"] == by_name[x["path"]] for x in lines)


def test_a_bad_image_leaves_its_batch_to_the_others(case):
    write_image(case.folder / "images" / "000.png", 200, 200)
    (case.folder / "images" / "001.png").write_bytes(b"")
    run, _ = case.generate(batch=2, shard_size=4, max_failed_share=0.5)
    found, sizes = detections(run)
    assert sizes[1] == (0, 0) and len(found[1][1]) == 0
    (case.folder / "images" / "001.png").unlink()
    alone, _ = case.generate("alone", batch=1, shard_size=1)
    for a, b in zip(found[0], detections(alone)[0][0], strict=True):
        assert np.array_equal(a, b)  # not padded to an image that is not there


def test_too_many_bad_images_are_an_error_at_the_end(case):
    (case.folder / "images" / "001.png").write_bytes(b"")
    with pytest.raises(RunError, match=r"1 of 4 images .* 0.2 \(first 001.png: .* --retry-failed"):
        case.generate(max_failed_share=0.2)
    run = RunFolder(case.folder / "run")
    before = raw_bytes(run)
    assert len(before) == 4
    assert len((run.folder / "errors.jsonl").read_text().splitlines()) == 1
    assert case.generate(max_failed_share=0.25)[1].done_here == 0
    # mended, as the message says
    write_image(case.folder / "images" / "001.png")
    _, report = case.generate(max_failed_share=0, retry_failed=True)
    assert (report.failed, report.done_here) == (0, 3)
    assert (run.folder / "errors.jsonl").read_text() == ""


def test_what_is_done_is_not_done_again(case):
    run, first = case.generate()
    before = {k: p.stat().st_mtime_ns for p in (run.folder / "raw").glob("*/*") for k in [p.name]}
    again, report = case.generate()
    assert report.done_here == 0 and report.detections == first.detections
    after = {k: p.stat().st_mtime_ns for p in (run.folder / "raw").glob("*/*") for k in [p.name]}
    assert before == after
    (run.raw(run.teachers[0]) / f"{run.shards[1].name}.done").unlink()
    assert case.generate()[1].done_here == 1


@pytest.mark.parametrize("text", ["{}", "[]", "3", '{"run": 1}', '"', ""])
def test_a_record_of_a_shard_that_is_none(case, text):
    run, _ = case.generate()
    before = raw_bytes(run)
    path = run.raw(run.teachers[0]) / f"{run.shards[1].name}.done"
    path.write_text(text)
    with pytest.raises(ShardError, match="is not complete"):
        read_shard(path.parent, run.shards[1])
    assert case.generate()[1].done_here == 1 and raw_bytes(run) == before


def test_images_without_detections(case):
    run, report = case.generate(floor=1.0)
    assert report.detections == 0
    assert all(size != (0, 0) for size in detections(run)[1].values())


def test_amp(case):
    run, report = case.generate(amp=True)
    assert report.detections > 0
    exact, _ = case.generate("exact")
    assert raw_bytes(run) != raw_bytes(exact)


def test_flip_in_a_run(case):
    run, _ = case.generate(flip=True)
    agreement = read_shard(run.raw(run.teachers[0]), run.shards[0]).detections.agreement
    assert (agreement >= 0).all() and (agreement <= 1).all() and agreement.max() > 0.3
    plain, _ = case.generate("plain")
    for a, b in zip(detections(run)[0].values(), detections(plain)[0].values(), strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_an_image_whose_boxes_are_not_finite_has_failed(case, monkeypatch):
    real = inference.Detector._tables

    def tables(self, inputs):
        return [
            None if x["height"] == 72 else y
            for x, y in zip(inputs, real(self, inputs), strict=True)
        ]

    monkeypatch.setattr(inference.Detector, "_tables", tables)
    run, report = case.generate(max_failed_share=1.0)
    assert report.failed == 1
    assert read_shard(run.raw(run.teachers[0]), run.shards[0]).failed == {1: NOT_FINITE}


def parsed(case, *more):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    name, config, weights = case.teachers[0]
    command = ["--images", str(case.folder / "images"), "--teacher", f"{name}={config},{weights}"]
    return parser.parse_args([*command, "--output", str(case.folder / "run"), *more])


def test_the_command_line(case):
    options = "--batch 2 --floor 0.1 --top-k 9 --flip --amp --device cpu --num-workers 0"
    options += " --shard-size 2 --max-failed-share 0.5 --licence none --origin here"
    args = parsed(case, *options.split(), "INPUT.MIN_SIZE_TEST", "48")
    planned, settings = from_arguments(args)
    assert not (case.folder / "run").exists()
    run = planned.begin()
    assert settings == GenerateSettings(
        floor=0.1, topk=9, batch=2, flip=True, amp=True, shard_size=2, device="cpu",
        num_workers=0, max_failed_share=0.5,
    )  # fmt: skip
    record = run.teachers[0].provenance
    assert (record["licence"], record["origin"], record["size"]) == ("none", "here", [48, 128])
    assert generate(run, settings).done_here == 4
    planned, settings = from_arguments(parsed(case, "--new-run", "--device", "cpu"))
    assert settings == GenerateSettings(device="cpu") and (run.folder / "raw").exists()
    assert not (planned.begin().folder / "raw").exists()


def test_mistakes_on_the_command_line(case):
    for more, kind, words in (
        (["--device", "abacus"], ValueError, "--device is abacus"),
        (["--forbid", "coco_2017_vall"], SourceError, "coco_2017_vall"),
        (["--teacher", "alone"], ConfigError, "must be NAME=CONFIG"),
        (["--batch", "0"], ConfigError, "batch is 0"),
        (["INPUT.MIN_SIZE_TSET", "3"], ValueError, "INPUT.MIN_SIZE_TEST"),
    ):
        with pytest.raises(kind, match=words):
            from_arguments(parsed(case, *more))
    assert not (case.folder / "run").exists()
