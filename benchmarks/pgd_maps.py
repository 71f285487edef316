"""How long PGD's maps take for all objects of a batch at once, and with a loop over the objects.

    python benchmarks/pgd_maps.py

Random predictions at the size of COCO's images. The two take turns, and their maps are compared.
"""

import argparse
from statistics import median

import torch
from timing import alternate, clock
from workload import positive

from kd_d2.modeling.dense_predictions import DensePredictions
from kd_d2.modeling.quality import probability_and_iou, quality_score
from kd_d2.projects.pgd import PredictionGuidedMaps, gaussian_weights, prediction_guided_maps
from kd_d2.projects.pgd.maps import inside

STRIDES = (8, 16, 32, 64, 128)
EXPONENTS = (0.8, 0.6)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=positive, default=50, help="in all")
    parser.add_argument("--batch", type=positive, default=2)
    parser.add_argument("--objects", type=positive, default=100, help="of each image")
    parser.add_argument("--classes", type=positive, default=80)
    parser.add_argument("--image-size", type=positive, nargs=2, default=(800, 1344))
    parser.add_argument("--topk", type=positive, default=30)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args(argv)


def random_batch(args: argparse.Namespace) -> tuple[DensePredictions, torch.Tensor, torch.Tensor]:
    """Predictions, boxes (N, M, 4) and classes (N, M) of a batch."""
    sizes = [tuple(-(-side // s) for side in args.image_size) for s in STRIDES]
    grids = [
        torch.cartesian_prod(torch.arange(h), torch.arange(w)).flip(1) * s
        for (h, w), s in zip(sizes, STRIDES, strict=True)
    ]
    points = torch.cat(grids).float()
    strides = torch.cat(
        [torch.full((len(g),), float(s)) for g, s in zip(grids, STRIDES, strict=True)]
    )
    number = args.batch, len(points)
    reach = strides[:, None] * (1 + 6 * torch.rand(*number, 2))
    size = 8 * 2 ** (6 * torch.rand(args.batch, args.objects, 2))
    corner = torch.rand(args.batch, args.objects, 2) * torch.tensor(args.image_size).flip(0)
    decoded = DensePredictions(
        logits=torch.randn(*number, args.classes),
        boxes=torch.cat((points - reach, points + reach), -1),
        points=points,
        strides=strides,
        valid=torch.ones(number, dtype=torch.bool),
        sizes=sizes,
    )
    for name in ("logits", "boxes", "points", "strides", "valid"):
        setattr(decoded, name, getattr(decoded, name).to(args.device))
    labels = torch.randint(args.classes, (args.batch, args.objects), device=args.device)
    return decoded, torch.cat((corner, corner + size), -1).to(args.device), labels


def maps_by_loop(decoded: DensePredictions, boxes, labels, k: int) -> PredictionGuidedMaps:
    """The same maps, one object after the other."""
    foregrounds = [torch.zeros_like(decoded.boxes[..., 0]) for _ in EXPONENTS]
    background = torch.ones_like(foregrounds[0])
    for i in range(len(boxes)):
        for box, label in zip(boxes[i], labels[i], strict=True):
            probability, iou = probability_and_iou(
                decoded.logits[i, None], decoded.boxes[i, None], box[None, None], label[None, None]
            )
            background[i][inside(decoded.points, box)] = 0
            for foreground, exponent in zip(foregrounds, EXPONENTS, strict=True):
                index = quality_score(probability, iou, exponent)[0, 0].topk(k).indices
                points = decoded.points[index]
                weights = gaussian_weights(points, torch.ones_like(index, dtype=bool), jitter=False)
                weights = weights * inside(points, box)
                foreground[i, index] = torch.maximum(foreground[i, index], weights)
    return PredictionGuidedMaps(*foregrounds, background)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    torch.manual_seed(0)
    batch = random_batch(args)

    def at_once() -> PredictionGuidedMaps:
        return prediction_guided_maps(
            *batch,
            k=args.topk,
            cls_exponent=EXPONENTS[0],
            reg_exponent=EXPONENTS[1],
            jitter=False,
        )

    def one_by_one() -> PredictionGuidedMaps:
        return maps_by_loop(*batch, args.topk)

    for ours, theirs in zip(vars(at_once()).values(), vars(one_by_one()).values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    rounds = -(-args.images // args.batch)
    steps = {"at once": at_once, "one by one": one_by_one}
    seconds = alternate(steps, rounds, now=clock(args.device))
    print(
        f"{args.images} images of {args.image_size[0]}x{args.image_size[1]}, {args.objects} "
        f"objects each, {args.batch} images a batch, {args.device}, {torch.get_num_threads()} "
        "threads"
    )
    for name, times in seconds.items():
        print(f"{name:>10}: {sum(times):7.2f} s, median of a batch {median(times) * 1e3:8.1f} ms")
    ratio = median(seconds["one by one"]) / median(seconds["at once"])
    print(f"ratio of the medians: {ratio:.2f}")


if __name__ == "__main__":
    main()
