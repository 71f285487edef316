import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_demo_trains_reports_and_keeps_what_is_done(tmp_path):
    def demo():
        command = [sys.executable, "tools/demo.py", "--quick", "--output", str(tmp_path)]
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout

    text = demo()
    for row in ("plain student", "control (LGD, LAMBDA 0)", "LGD student"):
        assert row in text
    report = (tmp_path / "report.md").read_text()
    for picture in ("curves.png", "detections.png", "features.png"):
        assert f"({picture})" in report
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "lgd" / "model_student.pth").exists()
    weights = tmp_path / "plain" / "model_final.pth"
    written = weights.stat().st_mtime_ns
    again = demo()
    assert again.count("kept from") == 3 and weights.stat().st_mtime_ns == written
