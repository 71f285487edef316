"""Exports appear together, and what people have made is never lost."""

import json

import pytest
from cases import make_run, usual_case

from kd_d2.projects.pseudo_label.export import ExportSettings, export_run
from kd_d2.projects.pseudo_label.publish import ChangedFileError


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path, usual_case())


def read(run, name="pseudo.json"):
    return json.loads((run.folder / "export" / name).read_text())


def test_labels_of_people_are_not_overwritten(run):
    folder = run.folder / "export"
    folder.mkdir()
    (folder / "pseudo.json").write_text("by hand")
    with pytest.raises(ChangedFileError, match="move it"):
        export_run(run)
    assert (folder / "pseudo.json").read_text() == "by hand"
    (folder / "pseudo.json").unlink()
    export_run(run)
    export_run(run)  # what it has written itself, it may
    text = (folder / "pseudo.json").read_text()
    (folder / "pseudo.json").write_text(text.replace("0.9000", "0.9100"))
    with pytest.raises(ChangedFileError, match="pseudo.json was changed"):
        export_run(run, ExportSettings(formats=("results",)))
    assert "0.9100" in (folder / "pseudo.json").read_text()


def test_an_export_that_was_cut_off_while_its_files_were_moved(run, monkeypatch):
    import os

    from kd_d2.projects.pseudo_label import publish

    export_run(run)
    real, moved = os.replace, []

    def dies(source, target):
        if ".new/" in str(source) and not str(source).endswith(".tmp"):
            if str(target).endswith("provenance.json") and ".new" not in str(target):
                raise KeyboardInterrupt
            moved.append(target)
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(publish.os, "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            export_run(run, ExportSettings(weight_mode="score", formats=("coco", "yolo")))
    assert moved
    # the side-car is still the former one; the next export must not take that for a change
    export_run(run, ExportSettings(weight_mode="score"))
    assert read(run)["annotations"][0]["weight"] == 0.9
    assert set(read(run, "provenance.json")["files"]) == {
        "pseudo.json", "ignore.json", "dropped.json", "results.json"
    }  # fmt: skip
    assert not (run.folder / "export" / "yolo").exists()
