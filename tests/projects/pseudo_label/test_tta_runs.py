"""Test-time augmentation in runs of generate: what they find, and which are the same."""

import argparse
import json

import numpy as np
import pytest
import torch
from generate_cases import Case, raw_bytes
from tta_cases import slow_union

from kd_d2.config import get_kd_cfg
from kd_d2.config.rules import ConfigError
from kd_d2.projects.pseudo_label import teachers
from kd_d2.projects.pseudo_label.config import check_pseudo_label_config
from kd_d2.projects.pseudo_label.generate import GenerateSettings, add_arguments, from_arguments
from kd_d2.projects.pseudo_label.recipe import generate_settings
from kd_d2.projects.pseudo_label.run_folder import RunError, RunFolder, hash_of
from kd_d2.projects.pseudo_label.shards import read_shard


@pytest.fixture
def case(tmp_path):
    return Case.make(tmp_path, images=4)


def contents(run):
    return [read_shard(run.raw(t), shard) for t in run.teachers for shard in run.shards]


def own_union(case, sizes, topk=20):
    """Image -> what a slow loop makes of what runs at each size find."""
    seen = {}
    for size in sizes:
        run, _ = case.generate(f"at_{size}", size=(size, size * 2), topk=topk)
        for c in contents(run):
            d = c.detections
            for i, *row in zip(d.image, *d.box.T, d.score, d.category, strict=True):
                seen.setdefault(int(i), []).append([float(x) for x in row])
    nms = run.teachers[0].provenance["nms"]
    return {i: slow_union(torch.tensor(x), nms, topk) for i, x in seen.items()}


@pytest.mark.parametrize("arch", ["RetinaNet", "GFL", "FasterRCNN"])
def test_a_run_unites_what_runs_at_each_size_find(tmp_path, arch):
    case = Case.make(tmp_path, images=3, archs=(arch,))
    run, report = case.generate(tta_sizes=(48, 64, 96))
    expected, count = own_union(case, (48, 64, 96)), 0
    for c in contents(run):
        for i in np.unique(c.detections.image):
            d = c.detections[c.detections.image == i]
            found = np.column_stack([d.box, d.score, d.category])
            assert np.array_equal(found, np.array(expected[i], np.float32))
            count += len(d)
    assert count == report.detections == sum(map(len, expected.values())) > 0
    plain, _ = case.generate("plain")
    assert raw_bytes(run).keys() == raw_bytes(plain).keys() and raw_bytes(run) != raw_bytes(plain)


@pytest.mark.parametrize("arch", ["RetinaNet", "FasterRCNN"])
@pytest.mark.parametrize("flip", [False, True])
def test_the_test_size_alone_is_no_augmentation(tmp_path, arch, flip):
    case = Case.make(tmp_path, images=3, archs=(arch,))
    plain, report = case.generate("plain", flip=flip)
    run, _ = case.generate(tta_sizes=(64,), flip=flip)
    assert report.detections > 0
    for a, b in zip(contents(run), contents(plain), strict=True):
        for name, value in a.detections.arrays().items():
            assert value.tobytes() == b.detections.arrays()[name].tobytes()


def test_all_views_with_agreement_whoever_works_and_an_image_that_cannot_be_read(case):
    (case.folder / "images" / "001.png").write_bytes(b"")
    settings = {"tta_sizes": (48, 64), "tta_flip": True, "flip": True, "max_failed_share": 0.5}
    run, report = case.generate(**settings)
    assert (report.failed, report.done_here) == (1, 4) and report.detections > 0
    for c in contents(run):
        agreement = c.detections.agreement
        assert (agreement >= 0).all() and (agreement <= 1).all()
        _, counts = np.unique(c.detections.image, return_counts=True)
        assert counts.max() <= 20 and 1 not in c.detections.image
    reason = json.loads((run.folder / "errors.jsonl").read_text())
    assert (reason["path"], reason["reason"]) == ("001.png", "the file is empty")
    again, _ = case.generate("again", num_workers=2, **settings)
    assert raw_bytes(again) == raw_bytes(run)
    without, _ = case.generate("without", **settings | {"tta_flip": False})
    assert raw_bytes(without) != raw_bytes(run)


# ---- settings


def test_another_augmentation_is_another_run(case):
    case.begin(tta_sizes=(48, 64))
    for now, words in (
        ({"tta_sizes": (64, 48)}, r"RetinaNet's tta_sizes was \[48, 64\], and now is \[64, 48\]"),
        ({}, r"tta_sizes was \[48, 64\], and now is as by default"),
        ({"tta_sizes": (48, 64), "tta_flip": True}, "tta_flip was as by default, and now is True"),
    ):
        with pytest.raises(RunError, match=words) as error:
            case.prepare(**now)
        assert str(error.value).count("and now is") == 1
    case.prepare(tta_sizes=[48, 64])
    names = {"none": {}, "one": {"tta_sizes": (64,)}, "flip": {"tta_flip": True}}
    assert len({case.prepare(name, **x)[0].teachers[0].run for name, x in names.items()}) == 3


def test_runs_without_it_are_those_from_before_it(case):
    run, _ = case.prepare()
    record = RunFolder(run.folder).teachers[0]
    assert not {"tta_sizes", "tta_flip"} & record.provenance.keys()
    before = (
        *("config", "weights_sha256", "floor", "topk", "nms", "size", "flip", "batch", "amp"),
        *("max_pixels", "shard_size", "image_list"),
    )
    assert record.run == hash_of({key: record.provenance[key] for key in before})
    assert set(teachers.IDENTITY) == {*before, "tta_sizes", "tta_flip"}
    other, _ = case.prepare("other", tta_sizes=(48, 64), tta_flip=True)
    record = RunFolder(other.folder).teachers[0].provenance
    assert (record["tta_sizes"], record["tta_flip"]) == ([48, 64], True)


@pytest.mark.parametrize("sizes", [(0,), (640.0,), 640, (640, 640), ("640",), (True,), None])
def test_sizes_that_cannot_be(sizes):
    words = "it must be a list of different whole numbers of pixels, e.g. "
    with pytest.raises(ConfigError, match=f"tta_sizes is .*; {words}"):
        GenerateSettings(tta_sizes=sizes)
    cfg = get_kd_cfg()
    cfg.PSEUDO_LABEL.GENERATE.TTA_SIZES = sizes
    with pytest.raises(ConfigError, match=f"PSEUDO_LABEL.GENERATE.TTA_SIZES is .*; {words}"):
        check_pseudo_label_config(cfg)


def test_mirroring_is_a_truth():
    with pytest.raises(ConfigError, match="tta_flip is 1; it must be True or False"):
        GenerateSettings(tta_flip=1)


def test_the_config_node():
    cfg = get_kd_cfg()
    assert generate_settings(cfg).tta_sizes == () and not generate_settings(cfg).tta_flip
    node = "PSEUDO_LABEL.GENERATE"
    cfg.merge_from_list([f"{node}.TTA_SIZES", "[640, 1200]", f"{node}.TTA_FLIP", "True"])
    check_pseudo_label_config(cfg)
    settings = generate_settings(cfg)
    assert (tuple(settings.tta_sizes), settings.tta_flip) == ((640, 1200), True)


def test_the_command_line(case):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    name, config, weights = case.teachers[0]
    command = ["--images", str(case.folder / "images"), "--teacher", f"{name}={config},{weights}"]
    command += ["--device", "cpu", "--output", str(case.folder / "run")]
    _, settings = from_arguments(parser.parse_args(command))
    assert settings == GenerateSettings(device="cpu")
    more = ["--new-run", "--tta-sizes", "640", "800", "--tta-flip"]
    run, settings = from_arguments(parser.parse_args([*command, *more]))
    assert settings == GenerateSettings(device="cpu", tta_sizes=(640, 800), tta_flip=True)
    assert run.begin().teachers[0].provenance["tta_sizes"] == [640, 800]
    with pytest.raises(ConfigError, match=r"tta_sizes is \(0,\); it must be"):
        from_arguments(parser.parse_args([*command, "--tta-sizes", "0"]))
