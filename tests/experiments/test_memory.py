"""Peaks of memory, of this process, of another one, and from Detectron2's log."""

import subprocess
import sys

import pytest

from kd_d2.experiments.memory import logged_gpu_peak, resident_peak

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_the_peak_of_this_process_grows():
    before = resident_peak()
    block = bytearray(b"x") * (200 << 20)
    assert resident_peak() >= before and resident_peak() > len(block) / 2**20


@needs_proc
def test_the_peak_of_another_process():
    code = "b = bytearray(b'x') * (100 << 20); print(flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:
        process.stdout.readline()
        assert 100 < resident_peak(process.pid) < 300
        process.communicate(b"\n")
    assert resident_peak(process.pid) is None


def test_the_peak_of_a_gpu_is_what_detectron2_logs(tmp_path):
    log = tmp_path / "train.log"
    assert logged_gpu_peak(log) is None
    log.write_text("iter: 19  lr: 0.1  max_mem: 900M\niter: 39  max_mem: 1234M\niter: 59\n")
    assert logged_gpu_peak(log) == 1234
