"""Files are whole or not there."""

import contextlib
import hashlib
import os
import resource
from pathlib import Path

import pytest
import torch

from kd_d2.checkpoint import atomic_write, earlier_file_kept, file_sha256


def test_a_failed_write_leaves_the_old_file_and_no_trace(tmp_path):
    path = str(tmp_path / "weights.pth")
    with atomic_write(path) as f:
        f.write(b"old")
    with pytest.raises(RuntimeError, match="disk"), atomic_write(path) as f:
        f.write(b"half of the new")
        raise RuntimeError("disk")
    assert Path(path).read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["weights.pth"]


def test_a_full_disk_is_told_from_other_errors_of_torch(tmp_path):
    """torch.save says RuntimeError to both; a limit on the size of files stands for the disk's."""
    path = str(tmp_path / "weights.pth")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(OSError, match=f"'{path}' could not be written.*MiB are free"):
            with atomic_write(path) as f:
                torch.save(torch.ones(100_000), f)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == []


def test_the_name_appears_only_when_the_file_is_complete(tmp_path):
    path = tmp_path / "weights.pth"
    with atomic_write(str(path)) as f:
        f.write(b"1")
        assert not path.exists()
    assert path.read_bytes() == b"1"


def test_text_and_overwriting(tmp_path):
    path = str(tmp_path / "last_checkpoint")
    for text in ("model_0000001.pth", "model_final.pth"):
        with atomic_write(path, "w") as f:
            f.write(text)
    assert Path(path).read_text() == "model_final.pth"


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_write(str(tmp_path / "no" / "file")) as f:
        f.write(b"")


def test_a_failure_puts_an_earlier_file_back(tmp_path):
    path = tmp_path / "config.yaml"
    for failing, always, expected in (
        (True, False, "old"),
        (False, False, "new"),
        (False, True, "old"),
        (True, True, "old"),
    ):
        path.write_text("old")
        with contextlib.suppress(SystemExit), earlier_file_kept(str(path), always):
            path.write_text("new")
            if failing:
                raise SystemExit(2)
        assert path.read_text() == expected
    path.unlink()
    with pytest.raises(ValueError), earlier_file_kept(str(path)):
        path.write_text("of a start that failed")
        raise ValueError
    assert path.exists()  # nothing is lost with it, and it helps to find the mistake


def test_sha256(tmp_path):
    (tmp_path / "f").write_bytes(b"kd" * 2_000_000)
    assert file_sha256(str(tmp_path / "f")) == hashlib.sha256(b"kd" * 2_000_000).hexdigest()
