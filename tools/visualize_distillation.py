#!/usr/bin/env python
"""Pictures of a trained distiller: its detections, and student against teacher features.

    python tools/visualize_distillation.py --config-file output/lgd/config.yaml \\
        --weights output/lgd/model_final.pth --output output/lgd/pictures

The weights must be a full distillation checkpoint: an exported student has no teacher to show.
"""

import argparse
import sys
from pathlib import Path

from kd_d2.data.requirements import check_datasets
from kd_d2.engine import load_config, user_errors
from kd_d2.student_config import is_distiller
from kd_d2.visualization.detections import detect, detection_sheet, ground_truth
from kd_d2.visualization.feature_maps import feature_sheet
from kd_d2.visualization.trained import (
    class_names,
    load_trained,
    model_inputs,
    original_image,
    sample_records,
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="config of a distiller")
    parser.add_argument("--weights", required=True, help="its checkpoint, e.g. model_final.pth")
    parser.add_argument("--output", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--images", type=int, default=12, help="images on the detection sheet")
    parser.add_argument("--threshold", type=float, default=0.3, help="least score of a detection")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for the config")
    return parser.parse_args(argv)


def load(args: argparse.Namespace):
    """The config, and the distiller with its weights.

    Raises:
        ValueError: for a plain detector.
    """
    if args.images < 1:
        raise ValueError(f"--images is {args.images}; it must be at least 1.")
    cfg = load_config(args.config_file, args.opts)
    if not is_distiller(cfg) or not cfg.MODEL.KD.ENABLED:
        raise ValueError(
            f"{args.config_file} trains a plain {cfg.MODEL.META_ARCHITECTURE}, which has no "
            "teacher to show: give the config of a distiller."
        )
    check_datasets(cfg, ("TEST",))
    return load_trained(args.config_file, args.weights, args.device, args.opts)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with user_errors():
        cfg, distiller = load(args)
    args.output.mkdir(parents=True, exist_ok=True)
    dataset = cfg.DATASETS.TEST[0]
    records = sample_records(dataset, args.images)
    found = detect(distiller, model_inputs(cfg, records), args.threshold)
    detection_sheet(
        args.output / "detections.png",
        [original_image(record) for record in records],
        [ground_truth(record) for record in records],
        {"student": found},
        class_names(dataset),
        per_row=3,
    )
    teacher = "instructive" if cfg.MODEL.KD.TEACHER.NAME == "LabelEncoder" else "teacher"
    feature_sheet(args.output / "features.png", cfg, distiller, records[:4], teacher)
    print(f"Written: {args.output / 'detections.png'} and {args.output / 'features.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
