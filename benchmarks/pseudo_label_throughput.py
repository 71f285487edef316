"""How fast images are pseudo-labelled, compared with the teacher's bare inference.

    python benchmarks/pseudo_label_throughput.py --config-file configs/quickstart/plain_fcos.yaml

Bare inference runs the teacher on batches that are in memory already. The stage generate of
tools/pseudo_label.py reads, resizes and checks the images, and writes what was found. Both take
turns with the same images, batches and random weights.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from workload import positive

from kd_d2.engine import load_config, user_errors
from kd_d2.experiments.machine import describe_machine, machine_sentence
from kd_d2.projects.pseudo_label.generate import GenerateSettings, generate, prepare_run
from kd_d2.projects.pseudo_label.reading import ImageReader
from kd_d2.projects.pseudo_label.run_folder import ImageRecord
from kd_d2.projects.pseudo_label.sources import from_names
from kd_d2.projects.pseudo_label.teachers import TeacherSource, build_detector, teacher_config


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", required=True, help="config of a plain detector")
    parser.add_argument("--images", nargs="+", default=["shapes_unlabeled"], metavar="NAME|FOLDER")
    parser.add_argument("--limit", type=positive, default=400, help="images at most")
    parser.add_argument("--batch", type=positive, default=8)
    parser.add_argument("--num-workers", type=int, default=1)
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for the config")
    return parser.parse_args(argv)


def write_weights(cfg: CfgNode, path: Path) -> None:
    """Of a detector that was never trained."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = "", "cpu"
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, path)


class BareInference:
    """The teacher on batches that lie in memory."""

    def __init__(
        self, source: TeacherSource, settings: GenerateSettings, images: list[ImageRecord]
    ):
        cfg = teacher_config(source, settings)
        self._device = settings.torch_device()
        self._detector = build_detector(cfg).to(self._device)
        read = ImageReader(cfg)
        inputs = [read(image) for image in images]
        self._batches = [
            inputs[i : i + settings.batch] for i in range(0, len(inputs), settings.batch)
        ]

    @torch.inference_mode()
    def __call__(self) -> None:
        for batch in self._batches:
            found = self._detector(batch)
        found[-1]["instances"].scores.cpu()  # waits for a GPU


def measure(args: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """Seconds of each round of both."""
    weights = folder / "weights.pth"
    write_weights(load_config(args.config_file, args.opts), weights)
    source = TeacherSource("teacher", args.config_file, str(weights), args.opts)
    root, images = from_names(args.images)
    images = images[: args.limit]
    settings = GenerateSettings(
        batch=args.batch, num_workers=args.num_workers, device=args.device, shard_size=100
    )
    bare = BareInference(source, settings, images)
    seconds: dict[str, list[float]] = {"bare": [], "generate": []}
    for i in range(-1, args.rounds):
        start = time.perf_counter()
        bare()
        middle = time.perf_counter()
        run = prepare_run(folder / f"run_{i}", images, root, [source], settings)
        generate(run, settings)
        if i >= 0:
            seconds["bare"].append(middle - start)
            seconds["generate"].append(time.perf_counter() - middle)
    print(f"{len(images)} images in batches of {args.batch}, {args.num_workers} reading")
    return seconds


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with user_errors(), tempfile.TemporaryDirectory() as folder:
        seconds = measure(args, Path(folder))
    machine = describe_machine(args.device) | {"threads": torch.get_num_threads()}
    ratio = median(seconds["bare"]) / median(seconds["generate"])
    best = min(seconds["bare"]) / min(seconds["generate"])
    print(f"{args.config_file}; {machine_sentence(machine)}, {machine['threads']} threads")
    print(
        f"Throughput of generate: {100 * ratio:.1f} % of bare inference (medians of {args.rounds} "
        f"rounds that take turns; {100 * best:.1f} % of the fastest), beginning and end included."
    )


if __name__ == "__main__":
    main()
