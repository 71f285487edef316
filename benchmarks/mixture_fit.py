"""How long PAA's mixture fit takes for all objects of a batch at once, and one by one.

    python benchmarks/mixture_fit.py

The batched fit takes turns with a loop over scikit-learn's GaussianMixture, which the published
code of PAA and LAD calls for each object; what they find is compared.
"""

import argparse
import warnings
from statistics import median

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from timing import alternate, clock
from torch import Tensor
from workload import positive

from kd_d2.modeling.detectors.gaussian_mixture import fit_two_gaussians


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=positive, default=16)
    parser.add_argument("--objects", type=positive, default=8, help="of each image")
    parser.add_argument("--candidates", type=positive, default=45, help="of an object, at most")
    parser.add_argument("--rounds", type=positive, default=10)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args(argv)


def random_costs(args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Ascending costs (S, K), and which of them there are: few good anchors, more bad ones."""
    generator = np.random.default_rng(0)
    number = args.images * args.objects
    costs = torch.zeros(number, args.candidates, dtype=torch.float64)
    present = torch.zeros_like(costs, dtype=torch.bool)
    for row, there in zip(costs, present, strict=True):
        n = int(generator.integers(2, args.candidates + 1))
        good = generator.gamma(4.0, 0.2, n // 3)
        bad = 1.5 + generator.gamma(4.0, 0.25, n - n // 3)
        row[:n] = torch.from_numpy(np.sort(np.concatenate((good, bad))))
        there[:n] = True
    return costs, present


def one_by_one(costs: Tensor, present: Tensor) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Components and log densities of each object, by scikit-learn on the CPU."""
    found = [], []
    for row, there in zip(costs.cpu(), present.cpu(), strict=True):
        x = row[there].numpy()[:, None]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            fit = GaussianMixture(
                2,
                weights_init=[0.5, 0.5],
                means_init=[x[0], x[-1]],
                precisions_init=np.ones((2, 1, 1)),
            ).fit(x)
        found[0].append(fit.predict(x))
        found[1].append(fit.score_samples(x))
    return found


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    costs, present = (x.to(args.device) for x in random_costs(args))
    fit = fit_two_gaussians(costs, present)
    components, densities = one_by_one(costs, present)
    equal = sum(
        np.array_equal(c, x[p].cpu().numpy())
        for c, x, p in zip(components, fit.component, present, strict=True)
    )
    difference = max(
        np.abs(d - x[p].cpu().numpy()).max()
        for d, x, p in zip(densities, fit.log_density, present, strict=True)
    )
    seconds = alternate(
        {
            "all at once": lambda: fit_two_gaussians(costs, present),
            "scikit-learn, one by one": lambda: one_by_one(costs, present),
        },
        args.rounds,
        now=clock(args.device),
    )
    ratio = median(seconds["scikit-learn, one by one"]) / median(seconds["all at once"])
    print(
        f"{len(costs)} objects of up to {args.candidates} candidates, {args.device}: all at once "
        f"is {ratio:.0f} times as fast; {equal} of {len(costs)} objects have equal components, and "
        f"log densities differ by {difference:.1e} at most."
    )


if __name__ == "__main__":
    main()
