"""How fast teachers were is noted beside a run, and labels do not depend on it."""

import json

import pytest
from cases import make_run, usual_case
from generate_cases import Case, raw_bytes

from kd_d2.projects.pseudo_label import speed, worker
from kd_d2.projects.pseudo_label.export import export_run
from kd_d2.projects.pseudo_label.filter import filter_run
from kd_d2.projects.pseudo_label.filters import FilterSettings
from kd_d2.projects.pseudo_label.merge import merge_run
from kd_d2.projects.pseudo_label.merge_settings import MergeSettings
from kd_d2.projects.pseudo_label.provenance import lasting, provenance
from kd_d2.projects.pseudo_label.report import write_report
from kd_d2.projects.pseudo_label.report_tables import tables
from kd_d2.projects.pseudo_label.speed import Stopwatch, speeds
from kd_d2.projects.pseudo_label.statistics import statistics
from kd_d2.projects.pseudo_label.verify import verify


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path, usual_case())


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(speed.time, "monotonic", lambda: self.now)


def test_a_stopwatch_by_hand(run, monkeypatch):
    clock = Clock(monkeypatch)
    watch = Stopwatch()
    for passed, teacher, images in ((4, "big", 8), (2, "big", 4), (5, "other", 1)):
        clock.now += passed
        watch.add(teacher, images)
    clock.now += 1000  # others have the last shards
    watch.go_on()
    clock.now += 5
    watch.add("other", 1)
    watch.write(run)
    big, other = speeds(run).values()
    ended = big.pop("ended")
    assert big == {"images_done": 12, "seconds": 6.0, "workers": 1, "images_per_second": 2.0}
    assert other["ended"] == ended and ended[:2] == "20"
    assert (other["images_done"], other["seconds"], other["images_per_second"]) == (2, 10.0, 0.2)


def test_who_has_done_nothing_notes_nothing(run):
    Stopwatch().write(run)
    assert not (run.folder / "speed").exists() and speeds(run) == {}


def note(run, name, ended, **teachers):
    (run.folder / "speed").mkdir(exist_ok=True)
    teachers = {t: {"images": n, "seconds": s} for t, (n, s) in teachers.items()}
    content = {"started": "2025-01-01", "ended": ended, "teachers": teachers}
    (run.folder / "speed" / name).write_text(json.dumps(content))


def test_processes_are_added_up(run):
    note(run, "a.json", "2025-01-03", big=(10, 1), gone=(5, 5))
    note(run, "b.json", "2025-01-02", big=(20, 5), other=(4, 8))
    for name, text in (("c.json", "{"), ("d.json", "[]"), ("e.json", '{"teachers": {"big": 1}}')):
        (run.folder / "speed" / name).write_text(text)
    found = speeds(run)
    assert list(found) == ["big", "other"]
    assert found["big"] == {
        "images_done": 30, "seconds": 6.0, "workers": 2, "ended": "2025-01-03",
        "images_per_second": 5.0,
    }  # fmt: skip
    assert found["other"]["images_per_second"] == 0.5 and found["other"]["workers"] == 1


def test_the_report_shows_it_and_labels_do_not(run):
    before = [x.read_bytes() for x in export_run(run)[:-1]]
    assert lasting(provenance(run)) == provenance_without_times(run)
    note(run, "a.json", "2025-01-03", big=(1500, 1000), other=(1500, 3000))
    (table,) = (x for x in tables(statistics(run)) if x.title == "Speed")
    assert table.rows == [
        ["big", "1,500", "1,000", "1.50", "1"],
        ["other", "1,500", "3,000", "0.50", "1"],
    ]
    _, page, _ = write_report(run, statistics(run))
    assert "| big | 1,500 | 1,000 | 1.50 | 1 |" in page.read_text()
    report = json.loads((run.folder / "report" / "report.json").read_text())
    assert report["throughput"]["big"]["ended"] == "2025-01-03"
    *files, side_car = export_run(run)
    assert [x.read_bytes() for x in files] == before and verify(run) == []
    assert json.loads(side_car.read_text())["teachers"][1]["images_per_second"] == 0.5
    assert lasting(provenance(run)) == provenance_without_times(run)


def provenance_without_times(run):
    content = provenance(run)
    content["teachers"] = [
        {key: t[key] for key in ("name", "classes", "run", "floor")} for t in content["teachers"]
    ]
    del content["images"]["root"]
    return content


def labelled(run):
    merge_run(run, MergeSettings(threshold=0.3))
    filter_run(run, FilterSettings())
    return {x.name: x.read_bytes() for x in export_run(run)[:-1]}


def test_interrupted_and_resumed(tmp_path):
    case = Case.make(tmp_path, images=5, archs=("RetinaNet", "FCOS"))
    whole, _ = case.generate("whole")
    assert [(x["images_done"], x["workers"]) for x in speeds(whole).values()] == [(5, 1)] * 2
    assert all(x["seconds"] > 0 for x in speeds(whole).values())
    run, _ = case.generate()
    (run.raw(run.teachers[1]) / f"{run.shards[1].name}.done").unlink()
    case.generate()
    case.generate()  # all is done
    assert [(x["images_done"], x["workers"]) for x in speeds(run).values()] == [(5, 1), (7, 2)]
    assert raw_bytes(run) == raw_bytes(whole) and labelled(run) == labelled(whole)
    assert statistics(run).throughput == speeds(run)
    # and a new run begins at nothing
    fresh, _ = case.prepare(new_run=True, floor=0.1)
    assert speeds(fresh) == {} and not (run.folder / "speed").exists()


def test_a_worker_that_fails_has_worked(tmp_path, monkeypatch):
    case = Case.make(tmp_path, images=5)
    run, _ = case.prepare()
    real, calls = worker.write_shard, []

    def full(*args):
        calls.append(args)
        if len(calls) == 2:
            raise OSError("No space left on device")
        return real(*args)

    monkeypatch.setattr(worker, "write_shard", full)
    with pytest.raises(OSError, match="No space left"):
        case.generate()
    assert speeds(run)["RetinaNet"]["images_done"] == 4  # the last one was not written
