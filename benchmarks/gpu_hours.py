"""Estimates of what schedules cost, for planning: GPU-hours of plain and distilled training.

    python benchmarks/gpu_hours.py configs/LGD/*_2x_ms.yaml configs/LGD/*_3x_ms.yaml

Nothing is timed. The arithmetic of one step on one image is counted at two small sizes, carried on
to the size of COCO's training images (it is linear in the area, and the share of the RoIs is
constant), and converted by one measured time of Detectron2's model zoo (RetinaNet R-50, 0.205 s for
16 images on 8 V100s, float32). Grouped and deformable convolutions run slower than their arithmetic
says, so expect up to twice as much for X-101; mixed precision and newer GPUs take a fraction.
"""

import argparse
from pathlib import Path

from detectron2.utils.events import EventStorage
from flops import count_step
from workload import DISTILLED, PLAIN, autocast, build_variant, load_config, make_batch, positive

from kd_d2.engine import user_errors
from kd_d2.modeling import build_stages

ZOO_CONFIG = "configs/LGD/retinanet_r50_2x_ms.yaml"
ZOO_GPU_SECONDS = 8 * 0.205  # of an iteration with 16 images, as the zoo reports it
ZOO_BATCH = 16
COUNTED_AT = ((256, 320), (320, 448))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="+", help="configs of distillers")
    parser.add_argument(
        "--image-size",
        nargs=2,
        type=positive,
        default=[736, 1088],
        metavar=("H", "W"),
        help="of the training images, padded; default: about the mean of the multi-scale schedules",
    )
    parser.add_argument("--boxes", type=int, default=8, help="objects in the image")
    return parser.parse_args(argv)


def gflop(path: str, variant: str, image_size: list[int], boxes: int) -> float:
    """10^9 multiplications and additions of a training step on one image."""
    cfg = load_config(path, "cpu")
    model = build_variant(cfg, variant)
    num_classes = build_stages(getattr(model, "student", model)).num_classes
    counts = []
    for size in COUNTED_AT:
        batch = make_batch(num_classes, 1, *size, boxes, masks=cfg.MODEL.MASK_ON)
        with EventStorage():
            total = count_step(lambda batch=batch: model(batch), autocast(cfg))[1]
        counts.append((size[0] * size[1], total / 1e9))
    return carry_on(*counts, area=image_size[0] * image_size[1])


def carry_on(first: tuple[float, float], second: tuple[float, float], area: float) -> float:
    """The line through two (area, value), at another area.

    >>> carry_on((1, 10.0), (2, 14.0), area=5)
    26.0
    """
    slope = (second[1] - first[1]) / (second[0] - first[0])
    return first[1] + slope * (area - first[0])


def gpu_hours(per_image: float, zoo_per_image: float, iterations: int, batch: int) -> float:
    """
    Args:
        per_image, zoo_per_image: arithmetic of a step on an image, of this detector and of the
            zoo's RetinaNet R-50.

    >>> round(gpu_hours(2.0, 1.0, 180000, 16))
    164
    """
    seconds = ZOO_GPU_SECONDS * per_image / zoo_per_image
    return seconds * batch / ZOO_BATCH * iterations / 3600


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with user_errors():
        print_table(args)
    return 0


def print_table(args: argparse.Namespace) -> None:
    """One line of Markdown for each config.

    Raises:
        ValueError, OSError: a config cannot be read, or is that of a plain detector.
    """
    solvers = {path: load_config(path, "cpu").SOLVER for path in args.configs}
    zoo = gflop(ZOO_CONFIG, PLAIN, args.image_size, args.boxes)
    print("| config | iterations | GFLOP an image, plain | distilled | ratio | ", end="")
    print("GPU-hours (V100), plain | distilled |\n|---|---:|---:|---:|---:|---:|---:|")
    for path, solver in solvers.items():
        counts = [gflop(path, v, args.image_size, args.boxes) for v in (PLAIN, DISTILLED)]
        hours = [gpu_hours(x, zoo, solver.MAX_ITER, solver.IMS_PER_BATCH) for x in counts]
        print(
            f"| {Path(path).stem} | {solver.MAX_ITER:,} | {counts[0]:.0f} | {counts[1]:.0f} | "
            f"{counts[1] / counts[0]:.2f} | {hours[0]:.0f} | {hours[1]:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    raise SystemExit(main())
