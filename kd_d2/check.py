"""``python -m kd_d2.check``: what is installed here, and whether one distillation step works.

Prints the environment in a few lines, then OK; or the one thing that is wrong, with exit code 1.
"""

import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import warnings
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

import kd_d2


def version(package: str) -> str:
    """The version of an installed package, or "missing"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def detectron2_source() -> str:
    """Where the installed Detectron2 comes from, as far as its metadata tells."""
    import detectron2

    folder = str(Path(detectron2.__file__).parent)
    try:
        metadata = importlib.metadata.distribution("detectron2")
    except importlib.metadata.PackageNotFoundError:
        return f"source not recorded, {folder}"
    if noted := metadata.read_text("kd_d2_source.json"):  # tools/install_detectron2.py wrote it
        source = json.loads(noted)
        if source["source"] == "git":
            return f"from git {source['commit'][:8]}"
        return f"from the PyPI wheel {source['package']} {source['version']}"
    if noted := metadata.read_text("direct_url.json"):  # pip wrote it
        return f"from {json.loads(noted)['url']}"
    return f"source not recorded, {folder}"


def cpp_operators() -> str:
    """Whether Detectron2's compiled operators are there; kd_d2 needs none of them."""
    if importlib.util.find_spec("detectron2._C") is None:
        return "without C++ operators"
    try:
        importlib.import_module("detectron2._C")
    except ImportError as error:  # built for another torch
        return f"with C++ operators that do not load ({error})"
    return "with C++ operators"


def devices() -> str:
    """The devices that training can use."""
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    gpus = f"{len(names)} GPU ({', '.join(sorted(set(names)))})" if names else "no GPU"
    return f"{gpus}, CPU with {torch.get_num_threads()} threads"


def data_folder() -> str:
    """The folder of the data sets, whether it can be written, and what is there."""
    root = Path(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))).absolute()
    existing = next(path for path in [root, *root.parents] if path.exists())
    rights = "writable" if os.access(existing, os.W_OK) else "NOT writable"
    there = [name for name in ("coco", "crowdhuman") if (root / name).is_dir()]
    there += sorted(path.name for path in root.glob("shapes_v*"))
    absent = "" if root.is_dir() else "does not exist yet, "
    return f"{root} ({absent}{rights}; has {', '.join(there) or 'no data set yet'})"


def print_environment() -> None:
    """Prints versions, devices and the data folder."""
    import detectron2

    lines = {
        "python": f"{platform.python_version()}, {sys.prefix}",
        "torch": f"{torch.__version__}, torchvision {version('torchvision')}, "
        f"numpy {version('numpy')}",
        "kd_d2": f"{kd_d2.__version__}, {Path(kd_d2.__file__).parent}",
        "detectron2": f"{detectron2.__version__}, {detectron2_source()}, {cpp_operators()}",
        "devices": devices(),
        "data": data_folder(),
    }
    for name, value in lines.items():
        print(f"{name:11s}{value}")


def tiny_config() -> CfgNode:
    """LGD on a RetinaNet with ResNet-18, small enough for a step in a second."""
    cfg = kd_d2.get_kd_cfg()
    model = cfg.MODEL
    model.DEVICE = "cpu"
    model.WEIGHTS = ""
    model.META_ARCHITECTURE = "LabelGuidedDistiller"
    model.KD.STUDENT = "RetinaNet"
    model.KD.TEACHER.NAME = "LabelEncoder"
    model.KD.HEADS = ["InstructiveFeatures"]
    model.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    model.BACKBONE.FREEZE_AT = 0
    model.RESNETS.DEPTH = 18
    model.RESNETS.RES2_OUT_CHANNELS = 64
    model.RESNETS.OUT_FEATURES = model.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    model.FPN.OUT_CHANNELS = 32
    model.RETINANET.NUM_CLASSES = 3
    model.RETINANET.NUM_CONVS = 1
    return cfg


def random_batch(size: int = 128) -> list[dict]:
    """One random image with two boxes, as Detectron2's mapper would hand it over."""
    instances = Instances((size, size))
    instances.gt_boxes = Boxes(torch.tensor([[8.0, 8.0, 60.0, 72.0], [50.0, 40.0, 120.0, 110.0]]))
    instances.gt_classes = torch.tensor([0, 2])
    image = torch.randint(256, (3, size, size), dtype=torch.uint8)
    return [{"image": image, "instances": instances, "height": size, "width": size}]


def take_step() -> dict[str, float]:
    """Builds the tiny distiller and trains it for one step on the CPU.

    Returns:
        its losses.

    Raises:
        RuntimeError: if a loss is not finite, or the step leaves the student as it was.
    """
    model = build_model(tiny_config()).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-3)
    watched = next(p for p in model.student.parameters() if p.requires_grad)
    before = watched.detach().clone()
    with EventStorage(0):
        losses = model(random_batch())
    total = sum(losses.values())
    if not torch.isfinite(total):
        raise RuntimeError(f"a loss of the tiny distiller is not finite: {losses}")
    total.backward()
    optimizer.step()
    if torch.equal(before, watched):
        raise RuntimeError("a training step did not change the student")
    return {name: loss.item() for name, loss in losses.items()}


def main() -> int:
    print_environment()
    try:
        with warnings.catch_warnings():  # Detectron2's anchors, once per process
            warnings.filterwarnings("ignore", message="torch.meshgrid: in an upcoming release")
            losses = take_step()
    except Exception as error:  # whatever it is, the answer is one sentence
        print(f"WRONG      one distillation step failed: {type(error).__name__}: {error}")
        return 1
    print(f"OK         one LGD step on the CPU, {len(losses)} losses")
    return 0


if __name__ == "__main__":
    sys.exit(main())
