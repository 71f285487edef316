import json
import os
import sys
import time
from pathlib import Path

import pytest

from kd_d2.experiments.jobs import Job, run_jobs

CONFIG = str(Path(__file__).resolve().parents[2] / "configs/quickstart/plain_retinanet.yaml")

# Stands in for train_net.py: writes metrics as Detectron2 does, and what it was called with.
FAKE = """
import json, os, sys, time
out = sys.argv[sys.argv.index("OUTPUT_DIR") + 1]
with open(out + "/calls", "a") as f:
    f.write(" ".join(sys.argv[1:]) + " threads=" + os.environ["OMP_NUM_THREADS"] + "\\n")
if "SEED" in sys.argv:
    print("the reason"); sys.exit(3)
with open(out + "/metrics.json", "a") as f:
    for i in range(3):
        f.write(json.dumps({"iteration": i, "total_loss": 1.0, "time": 0.1}) + "\\n")
    f.write(json.dumps({"iteration": 3, "bbox/AP": 12.5}) + "\\n")
if "MODEL.DEVICE" in sys.argv:
    open(out + "/pid", "w").write(str(os.getpid()))
    time.sleep(60)
"""


@pytest.fixture
def train_net(tmp_path):
    path = tmp_path / "train_net.py"
    path.write_text(FAKE)
    return path


def job(tmp_path, name="a", **overrides):
    overrides = {key.replace("__", "."): value for key, value in overrides.items()}
    return Job(name, CONFIG, tmp_path / name, 3, overrides)


def calls(job):
    return (job.output / "calls").read_text().splitlines()


def test_jobs_run_and_say_how_they_ended(tmp_path, train_net):
    jobs, ended, seen = [job(tmp_path, "a"), job(tmp_path, "b")], [], []
    run_jobs(
        jobs, train_net, workers=1, threads=3, tick=0.02, on_end=ended.append,
        on_tick=lambda jobs: seen.append([j.status for j in jobs]),
    )  # fmt: skip
    assert [j.status for j in jobs] == ["finished"] * 2 and ended == jobs
    assert [j.done for j in jobs] == [3, 3] and [j.ap for j in jobs] == [12.5] * 2
    assert ["running", "waiting"] in seen and ["waiting", "running"] not in seen
    (call,) = calls(jobs[0])
    assert call == (f"--config-file {CONFIG} --num-gpus 0 OUTPUT_DIR {tmp_path / 'a'} threads=3")
    marker = json.loads((tmp_path / "a" / "job.json").read_text())
    assert marker["finished"] and marker["command"][0] == sys.executable
    assert marker["resident_mib"] >= 0


def test_finished_jobs_are_kept_until_something_changes(tmp_path, train_net):
    run_jobs([job(tmp_path)], train_net, tick=0.02)
    again = job(tmp_path)
    run_jobs([again], train_net, tick=0.02)
    assert again.status == "kept" and again.done == 3 and len(calls(again)) == 1
    other = job(tmp_path, SOLVER__BASE_LR="0.5")
    assert not other.is_finished()
    run_jobs([other], train_net, tick=0.02)
    assert other.status == "finished" and len(calls(other)) == 1  # its folder was emptied


def test_only_what_a_job_uses_counts(tmp_path):
    def same(config, key, value):
        path = str(Path(CONFIG).with_name(config))
        jobs = [Job("a", path, tmp_path, 3, x) for x in ({}, {key: value})]
        return jobs[0].fingerprint() == jobs[1].fingerprint()

    assert same("plain_retinanet.yaml", "MODEL.KD.PKD.WEIGHT", "3.0")
    assert same("plain_retinanet.yaml", "MODEL.FCOS.NUM_CONVS", "3")
    assert same("plain_faster_rcnn.yaml", "MODEL.GFL.NUM_CONVS", "3")
    assert not same("plain_fcos.yaml", "MODEL.FCOS.NUM_CONVS", "3")
    assert not same("plain_faster_rcnn.yaml", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16")
    assert not same("pkd_fcos.yaml", "MODEL.KD.PKD.WEIGHT", "3.0")
    assert same("pkd_fcos.yaml", "MODEL.KD.CWD.WEIGHT", "3.0")
    assert not same("pkd_fcos.yaml", "MODEL.KD.CHECK_TEACHER", "3")


def test_an_unfinished_job_starts_anew_or_resumes(tmp_path, train_net):
    run_jobs([job(tmp_path)], train_net, tick=0.02)
    job(tmp_path).write_marker(finished=None)
    resumed = job(tmp_path)
    run_jobs([resumed], train_net, resume=True, tick=0.02)
    assert len(calls(resumed)) == 2 and "--resume" in calls(resumed)[1]
    job(tmp_path).write_marker(finished=None)
    anew = job(tmp_path)
    run_jobs([anew], train_net, tick=0.02)
    assert len(calls(anew)) == 1 and "--resume" not in calls(anew)[0]


def test_files_of_others_are_never_removed(tmp_path, train_net):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="move them away"):
        run_jobs([job(tmp_path)], train_net, tick=0.02)
    assert (tmp_path / "a" / "thesis.tex").exists()


def is_alive(pid):
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs Linux's /proc")
@pytest.mark.parametrize("reason", ["failure", "interrupt"])
def test_no_child_outlives_the_end(tmp_path, train_net, reason):
    sleeper = job(tmp_path, "sleeper", MODEL__DEVICE="cpu")
    failing = job(tmp_path, "failing", SEED="3")
    pid_file = sleeper.output / "pid"

    def interrupt(jobs):
        if pid_file.exists() and pid_file.read_text():
            raise KeyboardInterrupt

    start = time.monotonic()
    if reason == "failure":
        with pytest.raises(RuntimeError, match="'failing' failed with exit code 3(.|\n)*reason"):
            run_jobs([sleeper, failing], train_net, tick=0.3)
    else:
        with pytest.raises(KeyboardInterrupt):
            run_jobs([sleeper], train_net, tick=0.02, on_tick=interrupt)
    assert time.monotonic() - start < 30
    if pid_file.exists():
        assert not is_alive(int(pid_file.read_text()))
    assert not sleeper.is_finished() and not failing.is_finished()
