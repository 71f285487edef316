import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import step_overhead
import torch
from detectron2.utils.events import EventStorage
from workload import DISTILLED, OFF, PLAIN, build_variant, load_config, make_batch, make_step

CONFIG = str(Path(__file__).resolve().parents[2] / "configs/quickstart/lgd_retinanet.yaml")
TINY = ["--image-size", "64", "64", "--batch", "2", "--boxes", "2", "--iters", "2"]


def test_the_batch_is_that_of_a_data_loader_and_of_its_seed():
    batch = make_batch(5, images=2, height=48, width=64, boxes=3, masks=True)
    assert [x["image"].shape for x in batch] == [(3, 48, 64)] * 2
    for x in batch:
        boxes = x["instances"].gt_boxes.tensor
        assert (boxes[:, 2:] > boxes[:, :2]).all() and (boxes >= 0).all()
        assert (boxes <= torch.tensor([64, 48, 64, 48])).all()
        assert x["instances"].gt_classes.max() < 5
        assert len(x["instances"].gt_masks) == 3
    again = make_batch(5, images=2, height=48, width=64, boxes=3)
    assert torch.equal(batch[1]["image"], again[1]["image"])
    assert not torch.equal(batch[0]["image"], batch[1]["image"])


def test_images_without_boxes_are_possible():
    (x,) = make_batch(5, images=1, height=32, width=32, boxes=0, masks=True)
    assert len(x["instances"]) == 0


def test_the_plain_student_is_that_of_the_distiller():
    cfg = load_config(CONFIG, "cpu")
    plain, off, distilled = (build_variant(cfg, v) for v in (PLAIN, OFF, DISTILLED))
    assert type(plain) is type(distilled.student) is type(off.student)
    assert off.teacher is None and distilled.teacher is not None
    names = {k for k, _ in plain.named_parameters()}
    assert names == {k for k, _ in distilled.student.named_parameters()}


def test_the_whole_method_is_measured_whatever_the_schedule_says():
    cfg = load_config(CONFIG, "cpu")
    distiller = build_variant(cfg, DISTILLED)
    batch = make_batch(distiller.stages.num_classes, 2, 64, 64, 2)
    with EventStorage():
        losses = distiller(batch)
    losses["loss_distill"].backward()
    # The feature loss reaches the student at the very first step.
    assert any(p.grad is not None for p in distiller.student.backbone.parameters())


def test_steps_change_weights_and_stay_finite():
    cfg = load_config(CONFIG, "cpu")
    model = build_variant(cfg, DISTILLED)
    batch = make_batch(model.stages.num_classes, 2, 64, 64, 2)
    before = [p.detach().clone() for p in model.teacher.parameters()]
    with EventStorage():
        step = make_step(cfg, model, batch)
        step()
        step()
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, model.teacher.parameters()))


def test_a_plain_config_is_refused_in_one_sentence(capsys):
    plain = CONFIG.replace("lgd_retinanet", "plain_retinanet")
    with pytest.raises(SystemExit):
        step_overhead.main(["--config-file", plain])
    assert "give the config of a distiller" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option, words",
    [
        (("--device", "foo"), "--device is foo: it must be cpu or cuda"),
        (("--device", "cuda:99"), "--device is cuda:99, and torch finds"),
        (("--iters", "0"), "--iters: 0 is not a positive number"),
        (("--batch", "0"), "--batch: 0 is not"),
        (("--image-size", "0", "9"), "--image-size: 0 is not"),
    ],
)
def test_options_that_cannot_be_are_refused_in_one_sentence(capsys, option, words):
    with pytest.raises(SystemExit) as told:
        step_overhead.main(["--config-file", CONFIG, *option])
    assert told.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


def test_tables_show_measured_and_predicted_ratios():
    def row(variant, seconds, gflop, peak):
        memory = {"peak": peak, "before": 700.0, "kept": peak / 10}
        return {"variant": variant, "median": seconds, "ratio": seconds / 0.1, "memory": memory} | {
            "gflop_forward": gflop / 3,
            "gflop": gflop,
            "predicted": gflop / 6,
            "fastest_ratio": seconds / 0.1 - 0.01,
        }

    rows = [row(PLAIN, 0.1, 6.0, 1000.0), row(DISTILLED, 0.174, 12.5, 1170.0)]
    plain, distilled = step_overhead.step_table(rows).splitlines()[2:]
    assert plain == (
        "| plain student | 100.0 ms | 1.000 | 0.990 | 1.000 | 2.0 | 6.0 | 100 MiB (+0 %) "
        "| 1000 MiB (+0 %) |"
    )
    assert distilled == (
        "| distilled | 174.0 ms | 1.740 | 1.730 | 2.083 | 4.2 | 12.5 | 117 MiB (+17 %) "
        "| 1170 MiB (+17 %) |"
    )
    assert "700 MiB of it before" in step_overhead.memory_note("cpu", rows)
    assert "max_memory_allocated" in step_overhead.memory_note("cuda", rows)
    parts = [
        {"part": "student", "median": 0.05, "gflop": 2.0},
        {"part": "teacher", "median": 0.02, "gflop": 0.5},
        {"part": "optimiser", "median": 0.01, "gflop": None},
    ]
    teacher, optimiser = step_overhead.parts_table(parts).splitlines()[3:]
    assert teacher == "| teacher | 20.0 ms | 0.400 | 0.250 | 0.50 |"
    assert optimiser == "| optimiser | 10.0 ms | 0.200 |  |  |"


def test_activations_that_are_kept_are_counted_once():
    layer = torch.nn.Linear(256, 256)

    def model(x):
        y = layer(x).relu()  # keeps x and y; the weight is no activation
        return {"loss": y.sum() + (y * 2).sum()}

    model.parameters = layer.parameters
    x = torch.randn(1024, 256, requires_grad=True)  # 1 MiB, as is y
    kept = step_overhead.kept_for_backward(model, x, nullcontext())
    assert kept == pytest.approx(2.0)


@pytest.mark.slow
def test_end_to_end(tmp_path, capsys):
    path = tmp_path / "result.json"
    step_overhead.main(["--config-file", CONFIG, *TINY, "--json", str(path)])
    printed = capsys.readouterr().out
    assert "distillation off" in printed and "second head pass" in printed
    result = json.loads(path.read_text())
    assert [r["variant"] for r in result["steps"]] == [PLAIN, OFF, DISTILLED]
    plain, off, distilled = result["steps"]
    assert off["gflop"] == plain["gflop"]  # the wrapper multiplies nothing
    assert 1.3 < distilled["predicted"] < 2.5
    for r in result["steps"]:
        assert len(r["seconds"]) == 2
        assert r["memory"]["peak"] > r["memory"]["before"] > 0
        assert 0 < r["memory"]["kept"] <= distilled["memory"]["kept"]
    parts = {r["part"]: r for r in result["parts"]}
    forward = [r["gflop"] for r in result["parts"] if r["gflop"] is not None]
    assert sum(forward) == pytest.approx(distilled["gflop_forward"])
    assert parts["student"]["gflop"] == pytest.approx(plain["gflop_forward"])
