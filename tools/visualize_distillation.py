#!/usr/bin/env python
"""Pictures of what a trained distiller's teacher teaches: features, attention, detections, labels.

    python tools/visualize_distillation.py --config-file output/lgd/config.yaml \\
        --weights output/lgd/model_final.pth --output output/lgd/pictures

writes index.html, contact_sheet.png and a picture of each image. The images are those of
DATASETS.TEST, of another registered set (--dataset NAME), files and folders (--images ...), or a
folder with labels in COCO's format (--images FOLDER --annotations FILE.json). A teacher that reads
labels (LGD's) has nothing to show on images without.

The weights must be a full distillation checkpoint: an exported student has no teacher to show.
KEY VALUE pairs at the end override the config.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts

from kd_d2.config.student import is_distiller, student_config
from kd_d2.data.mappers import ImageError
from kd_d2.data.requirements import check_datasets, check_num_classes
from kd_d2.engine import load_config, user_errors
from kd_d2.visualization.level_features import FEATURE_STYLES
from kd_d2.visualization.naming import distiller_class_names, known_names
from kd_d2.visualization.observation import observe
from kd_d2.visualization.page import PicturePage
from kd_d2.visualization.sources import (
    TestInputs,
    annotated_records,
    image_records,
    spread,
)
from kd_d2.visualization.strip import Look
from kd_d2.visualization.trained import load_trained

_DEFAULT_NUM = 8


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="config of a distiller")
    parser.add_argument("--weights", required=True, help="its checkpoint, e.g. model_final.pth")
    parser.add_argument("--output", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--images", nargs="+", metavar="PATH", help="image files or folders")
    parser.add_argument("--annotations", metavar="FILE", help="COCO labels of --images FOLDER")
    parser.add_argument("--dataset", metavar="NAME", help="a registered data set")
    parser.add_argument(
        "--num",
        type=int,
        help=f"images at most, spread evenly; default: all files named, else {_DEFAULT_NUM}",
    )
    parser.add_argument(
        "--features",
        choices=FEATURE_STYLES,
        default=FEATURE_STYLES[0],
        help="principal components as colours, or how far the channels stand out",
    )
    parser.add_argument("--attention-level", metavar="LEVEL", help="e.g. p3; default: the mean")
    parser.add_argument(
        "--objects",
        type=int,
        nargs="+",
        metavar="N",
        help="numbers of the objects whose matching levels are shown; default: the largest",
    )
    parser.add_argument("--threshold", type=float, default=0.3, help="least score of a detection")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for the config")
    args = parser.parse_args(argv)
    if args.dataset and args.images:
        parser.error("--dataset and --images exclude each other")
    if args.annotations and len(args.images or ()) != 1:
        parser.error("--annotations goes with --images and one folder")
    if args.objects and min(args.objects) < 1:
        parser.error("--objects are numbers from 1")
    if args.num is not None and args.num < 1:
        parser.error("--num must be at least 1")
    return args


def checked_config(args: argparse.Namespace) -> list[str]:
    """Checks the config and the data before the model is built.

    Returns:
        overrides of the config.

    Raises:
        ValueError: for a plain detector, or data that do not fit.
        FileNotFoundError: for data that are not there.
    """
    overrides = list(args.opts)
    if args.dataset:
        overrides += ["DATASETS.TEST", repr((args.dataset,))]
    cfg = load_config(args.config_file, overrides)
    if not is_distiller(cfg) or not cfg.MODEL.KD.ENABLED:
        raise ValueError(
            f"{args.config_file} trains a plain {cfg.MODEL.META_ARCHITECTURE}, which has no "
            "teacher to show: give the config of a distiller."
        )
    if not args.images:
        check_datasets(cfg, ("TEST",))
        check_num_classes(cfg, student_config(cfg).MODEL.META_ARCHITECTURE)
    return overrides


def chosen_records(args: argparse.Namespace, cfg: CfgNode, num_classes: int) -> list[dict]:
    """The records to show."""
    if args.annotations:
        classes = known_names(cfg, num_classes)
        records = annotated_records(args.annotations, args.images[0], classes, num_classes)
    elif args.images:
        records = image_records(args.images)
    else:
        records = get_detection_dataset_dicts(cfg.DATASETS.TEST[0], filter_empty=False)
    only_files = args.images and not any(Path(p).is_dir() for p in args.images)
    num = args.num or (len(records) if only_files else _DEFAULT_NUM)
    return spread(records, num)


def check_level(name: str | None, levels: Iterable[str]) -> None:
    """Checks --attention-level.

    Raises:
        ValueError: for a level that the student does not have; names those that it has.
    """
    if name is not None and name not in levels:
        raise ValueError(
            f"--attention-level {name} is no level of the student: {', '.join(levels)}."
        )


def draw_page(args: argparse.Namespace) -> list[Path]:
    """Does what the command line asks for; returns the paths of contact sheet and index.

    Raises:
        ValueError, OSError: what was asked for cannot be had; the message says why.
    """
    overrides = checked_config(args)
    if args.images:
        image_records(args.images)  # what is missing is told before the model is built
    cfg, distiller = load_trained(args.config_file, args.weights, args.device, overrides)
    check_level(args.attention_level, distiller.stages.feature_shapes)
    records = chosen_records(args, cfg, distiller.stages.num_classes)
    names = distiller_class_names(cfg, distiller)
    page = PicturePage(args.output, Look(names, args.attention_level), args.features)
    inputs = TestInputs(cfg)
    unusable, shown = [], 0
    for record in records:
        try:
            x = inputs(record)
        except ImageError as error:
            print(f"Not shown: {error}", file=sys.stderr)
            unusable.append(str(error))
            continue
        page.add(
            observe(
                distiller,
                x,
                Path(record["file_name"]).name,
                names,
                image_format=cfg.INPUT.FORMAT,
                style=args.features,
                threshold=args.threshold,
                objects=None if args.objects is None else [i - 1 for i in args.objects],
            )
        )
        shown += 1
        print(f"{shown + len(unusable)}/{len(records)} {record['file_name']}", flush=True)
    if not shown:
        raise ValueError(f"None of the images can be used ({len(records)} tried). {unusable[0]}")
    teacher = type(distiller.teacher).__name__
    subtitle = f"{args.weights}, teacher {teacher}, detections of a score of {args.threshold}."
    return page.write("What the teacher teaches", subtitle, unusable)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with user_errors():
        paths = draw_page(args)
    print(f"Written: {' and '.join(map(str, paths))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
