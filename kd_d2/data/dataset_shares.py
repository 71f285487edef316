"""Training sets that are drawn from by given shares, whatever their sizes."""

import contextlib
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts
from detectron2.data.detection_utils import check_metadata_consistency
from detectron2.data.samplers import RepeatFactorTrainingSampler

from kd_d2.config.rules import ConfigError

__all__ = ["drawn_sets", "read_by_shares", "repeat_factors"]


def drawn_sets(cfg: CfgNode) -> list[str]:
    """Those of DATASETS.TRAIN that images are drawn from."""
    names, shares = cfg.DATASETS.TRAIN, cfg.DATALOADER.DATASET_SHARES
    return [name for name, share in zip(names, shares or [1] * len(names), strict=True) if share]


def repeat_factors(shares: Sequence[float], sizes: Sequence[int]) -> torch.Tensor:
    """How often each image is drawn, on average, in as many draws as there are images.

    Args:
        shares: of the data sets; they add up to 1.
        sizes: n_i, the number of images of each; above 0.

    Returns:
        (n,) where n = sum of n_i: the image's share_i * n / n_i.

    >>> repeat_factors([0.75, 0.25], [2, 4])
    tensor([2.2500, 2.2500, 0.3750, 0.3750, 0.3750, 0.3750])
    """
    counts = torch.tensor(sizes)
    return (torch.tensor(shares) * sum(sizes) / counts).repeat_interleave(counts)


def read_by_shares(cfg: CfgNode) -> dict:
    """Read DATASETS.TRAIN for DATALOADER.DATASET_SHARES; a set without a share is not read.

    Returns:
        "dataset": the records of all sets after Detectron2's filters; "sampler": draws from them,
        seeded as Detectron2's other samplers are.

    Raises:
        ConfigError: a data set is not a list of records.
        ValueError: the data sets have different classes.
    """
    names, given = cfg.DATASETS.TRAIN, cfg.DATALOADER.DATASET_SHARES
    files = cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else [None] * len(names)
    least = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0
    records, shares, sizes = [], [], []
    for name, share, file in zip(names, given, files, strict=True):
        if not share:
            continue
        found = get_detection_dataset_dicts(
            [name],
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            min_keypoints=least,
            proposal_files=[file] if file else None,
        )
        if not isinstance(found, list):
            raise ConfigError(
                f"DATALOADER.DATASET_SHARES needs lists of records, and the data set '{name}' is a "
                f"{type(found).__name__}: register a function that returns a list, or leave "
                "DATALOADER.DATASET_SHARES empty."
            )
        records += found
        shares.append(share)
        sizes.append(len(found))
    # Detectron2 compares the classes of sets that it reads together; some have none
    with contextlib.suppress(AttributeError):
        check_metadata_consistency("thing_classes", drawn_sets(cfg))
    return {
        "dataset": records,
        "sampler": RepeatFactorTrainingSampler(repeat_factors(shares, sizes)),
    }
