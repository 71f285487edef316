import re
from pathlib import Path

import numpy as np
import pseudo_label_throughput
from PIL import Image


def test_both_see_the_same_images(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    for i in range(3):
        Image.fromarray(np.full((64, 64, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    argv = ["--config-file", "configs/quickstart/plain_fcos.yaml", "--images", str(tmp_path)]
    argv += ["--num-workers", "0", "--batch", "2", "--rounds", "1"]
    pseudo_label_throughput.main(argv)
    text = capsys.readouterr().out
    assert "3 images in batches of 2" in text
    assert float(re.search(r"Throughput of generate: ([\d.]+) %", text)[1]) > 0
