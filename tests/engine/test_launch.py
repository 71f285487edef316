"""What the command line says of processes is checked before any is started."""

import pytest

from kd_d2.engine import LaunchError, check_batch, launch


@pytest.mark.parametrize("url", ["foo", "tcp://host", "http://host:80", "tcp://:80"])
def test_addresses_that_are_none(url):
    with pytest.raises(LaunchError, match="must be 'auto', tcp://HOST:PORT or file:///PATH"):
        launch(lambda: None, 2, dist_url=url)


def test_several_machines_need_an_address():
    with pytest.raises(LaunchError, match="--dist-url must be given"):
        launch(lambda: None, 2, num_machines=2, dist_url="auto")


@pytest.mark.parametrize("rank", [-1, 2, 5])
def test_machines_are_counted_from_zero(rank):
    with pytest.raises(LaunchError, match=f"--machine-rank is {rank} of --num-machines 2"):
        launch(lambda: None, 2, num_machines=2, machine_rank=rank, dist_url="tcp://host:1")


def test_a_negative_number_of_gpus():
    with pytest.raises(LaunchError, match="--num-gpus is -1; it must be 0"):
        launch(lambda: None, -1, dist_url="auto")


def test_the_batch_is_shared_equally(tiny_cfg, monkeypatch):
    cfg = tiny_cfg()
    cfg.SOLVER.IMS_PER_BATCH = 8
    check_batch(cfg, 0, 1)
    check_batch(cfg, 2, 4)
    with pytest.raises(ValueError, match="IMS_PER_BATCH is 8, which 3 processes cannot share"):
        check_batch(cfg, 3, 1)
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 4  # the batch will be scaled to 6
    check_batch(cfg, 3, 1)
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 0
    for key in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(key, "0")
    monkeypatch.setenv("WORLD_SIZE", "5")
    with pytest.raises(ValueError, match="which 5 processes"):
        check_batch(cfg, 2, 1)
