import gpu_hours
import pytest


def test_a_step_twice_as_large_costs_twice_as_much():
    assert gpu_hours.gpu_hours(1.0, 1.0, 3600, 16) == gpu_hours.ZOO_GPU_SECONDS
    assert gpu_hours.gpu_hours(3.0, 1.0, 3600, 8) == 1.5 * gpu_hours.ZOO_GPU_SECONDS


def test_the_table(monkeypatch, capsys):
    monkeypatch.chdir(gpu_hours.Path(gpu_hours.__file__).parents[1])
    per_image = {gpu_hours.PLAIN: 100.0, gpu_hours.DISTILLED: 170.0}
    monkeypatch.setattr(gpu_hours, "gflop", lambda path, variant, *_: per_image[variant])
    gpu_hours.main(["configs/LGD/retinanet_r50_2x_ms.yaml"])
    row = capsys.readouterr().out.splitlines()[-1]
    assert row == "| retinanet_r50_2x_ms | 180,000 | 100 | 170 | 1.70 | 82 | 139 |"


def test_a_config_that_is_not_there_is_told_before_anything_is_counted(monkeypatch, capsys):
    monkeypatch.setattr(gpu_hours, "gflop", lambda *_: pytest.fail("counted"))
    with pytest.raises(SystemExit) as told:
        gpu_hours.main(["nope.yaml"])
    assert told.value.code == 2
    assert "nope.yaml" in capsys.readouterr().err


def test_arithmetic_is_counted_and_carried_on(monkeypatch):
    monkeypatch.chdir(gpu_hours.Path(gpu_hours.__file__).parents[1])
    monkeypatch.setattr(gpu_hours, "COUNTED_AT", ((160, 160), (160, 320)))
    path, plain = "configs/quickstart/lgd_retinanet.yaml", gpu_hours.PLAIN
    one, two = (gpu_hours.gflop(path, plain, size, 2) for size in ([160, 160], [320, 320]))
    # a dense detector's arithmetic is in proportion to the area, but for rounded-up levels
    assert 3.5 * one < two < 4.1 * one
    assert gpu_hours.gflop(path, gpu_hours.DISTILLED, [160, 160], 2) > one
    assert gpu_hours.carry_on((1, 10.0), (2, 14.0), area=5) == 26.0
