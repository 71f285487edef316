import gpu_hours


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


def test_arithmetic_is_counted(monkeypatch):
    monkeypatch.chdir(gpu_hours.Path(gpu_hours.__file__).parents[1])
    path = "configs/quickstart/lgd_retinanet.yaml"
    counts = [
        gpu_hours.gflop(path, v, [160, 160], 2) for v in (gpu_hours.PLAIN, gpu_hours.DISTILLED)
    ]
    assert 0 < counts[0] < counts[1]
