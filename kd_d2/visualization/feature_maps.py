"""The student's features beside the teacher's, level by level."""

from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from matplotlib.figure import Figure
from torch import nn

from kd_d2.visualization.channel_energy import feature_energy
from kd_d2.visualization.detections import draw, ground_truth
from kd_d2.visualization.level_features import MIN_CELLS, level_features, run_both
from kd_d2.visualization.trained import class_names, model_inputs, original_image


@torch.no_grad()
def feature_pairs(distiller: nn.Module, x: dict) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Level name -> energies of the student's and of the teacher's features on one image.

    Args:
        x: an input with its labels. Padding is cut off; levels with too few cells are left out.
    """
    gt = [x["instances"].to(distiller.device)]
    levels = level_features(distiller, *run_both(distiller, x, gt))
    return {
        name: (feature_energy(level.student), feature_energy(level.teacher))
        for name, level in levels.items()
        if level.teacher is not None
    }


def feature_sheet(
    path: Path, cfg: CfgNode, distiller: nn.Module, records: list[dict], teacher_name: str
) -> None:
    """Writes one picture: a row for each image, a pair of maps (student, teacher) for each level.

    Args:
        distiller: a trained distiller in eval mode.
        records: labelled images of ``cfg.DATASETS.TEST[0]``.
        teacher_name: what the teacher's maps are called, e.g. "instructive".

    Raises:
        ValueError: if the images are too small for any level to be shown.
    """
    rows = [feature_pairs(distiller, x) for x in model_inputs(cfg, records)]
    levels = list(rows[0])
    if not levels:
        raise ValueError(f"The images are too small: no level has {MIN_CELLS} cells a side.")
    num_classes = len(class_names(cfg.DATASETS.TEST[0]))
    figure = Figure(figsize=(1.75 * (1 + 2 * len(levels)), 1.75 * len(rows) + 0.35))
    ratios = [1] + [0.08, 1, 1] * len(levels)
    grid = figure.add_gridspec(
        len(rows),
        len(ratios),
        width_ratios=ratios,
        left=0.005,
        right=0.995,
        bottom=0.01,
        top=1 - 0.3 / (1.75 * len(rows) + 0.35),
        wspace=0.03,
        hspace=0.04,
    )
    for i, (record, maps) in enumerate(zip(records, rows, strict=True)):
        axes = figure.add_subplot(grid[i, 0])
        draw(axes, original_image(record), ground_truth(record), num_classes)
        if i == 0:
            axes.set_title("ground truth", fontsize=9, pad=3)
        for k, level in enumerate(levels):
            for j, side in enumerate(("student", teacher_name)):
                axes = figure.add_subplot(grid[i, 2 + 3 * k + j])
                axes.imshow(maps[level][j], cmap="magma", vmin=0, vmax=1)
                axes.set(xticks=[], yticks=[])
                if i == 0:
                    axes.set_title(f"{level.upper()} {side}", fontsize=9, pad=3)
    figure.savefig(path, dpi=110)
