"""An exported student in a process that has Detectron2 and never imports kd_d2."""

import subprocess
import sys

import torch

SCRIPT = """
import sys, torch
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor

folder = sys.argv[1]
cfg = get_cfg()
cfg.merge_from_file(folder + "/student.yaml")
predictor = DefaultPredictor(cfg)
with torch.no_grad():
    outputs = predictor.model(torch.load(folder + "/inputs.pth"))
fields = [{k: getattr(v, "tensor", v) for k, v in o["instances"].get_fields().items()}
          for o in outputs]
torch.save(fields, folder + "/outputs.pth")
assert not [m for m in sys.modules if m.split(".")[0] == "kd_d2"]
"""


def detect_in_stock_detectron2(folder, inputs):
    """The fields of the detections on each image, boxes as tensors.

    Args:
        folder: with student.yaml, which names its weights.
        inputs: of the model, without labels.
    """
    torch.save(inputs, folder / "inputs.pth")
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(folder)], check=True, cwd=folder
    )
    return torch.load(folder / "outputs.pth", weights_only=False)
