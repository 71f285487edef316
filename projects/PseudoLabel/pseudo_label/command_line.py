"""What ``tools/pseudo_label.py`` can be asked for: a subcommand a stage, and all in a row."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from . import generate as generating
from .arguments import category_ids, class_names, label_set, pair
from .export import FORMATS, IGNORE_MODES, ExportSettings, checked_ids, export_run
from .filter import filter_run
from .filters import EMPTY_IMAGES, FilterSettings, check_mirrored
from .label_set import LabelSet
from .merge import merge_run, unify_classes
from .merge_settings import MODES, MergeSettings
from .merging import SCORE_TYPES
from .offline import check_offline, label_images
from .prepare import PlannedRun
from .report import write_report
from .run_folder import RunFolder
from .sheet import SheetSettings, write_sheet
from .statistics import statistics
from .thresholds import THRESHOLD_MODES
from .verify import verify
from .weights import WEIGHT_MODES


def build_parser(description: str) -> argparse.ArgumentParser:
    """One subcommand a stage; ``all`` has the arguments of every stage."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    for stage, (words, _, add) in STAGES.items():
        one = commands.add_parser(stage, help=words, description=words)
        if stage != "generate":
            one.add_argument("--run", required=True, type=Path, metavar="DIR", help="of generate")
        add(one)
    everything = commands.add_parser("all", help="all stages, one after the other")
    for stage in ("merge", "filter", "export", "report", "sheet", "generate"):
        STAGES[stage][2](everything)
    return parser


def run_stages(args: argparse.Namespace) -> int:
    """Does what was asked for; returns the exit code.

    Raises:
        ValueError, OSError: it cannot be done; the message says why, and what to do.
    """
    return _run_all(args) if args.stage == "all" else STAGES[args.stage][1](args)


def _run_all(args: argparse.Namespace) -> int:
    # all that can be wrong is looked at before hours are spent
    merge, filter_, export, sheet = _merge(args), _filter(args), _export(args), _sheet(args)
    labels, ids = merge.labels, category_ids(args.category_ids)
    truth = _truth(args, labels)
    check_mirrored(filter_, args.flip)
    run, settings = generating.from_arguments(args)
    unified, _ = unify_classes(run, merge)
    checked_ids(list(unified.names), ids)
    teachers, images = [x.name for x in run.teachers], run.images
    check_offline(teachers, unified, images, merge, filter_, export, labels=labels, truth=truth)
    _generated(run, settings)
    folder = label_images(
        RunFolder(args.output),
        merge,
        filter_,
        export,
        labels=labels,
        truth=truth,
        sheet=sheet,
        category_ids=ids,
        progress=_progress,
    )
    return _say([folder, *(folder.with_name(x) for x in ("report", "sheet"))])


def _say(paths: list[Path]) -> int:
    print(f"Written: {', '.join(map(str, paths))}")
    return 0


def _progress(done: int, number: int) -> None:
    if sys.stderr.isatty():
        end = "\n" if done == number else ""
        print(f"\rmerging: {done} of {number} shards{end}", end="", file=sys.stderr, flush=True)


# ---- generate


def _generate(args: argparse.Namespace) -> int:
    return _generated(*generating.from_arguments(args))


def _generated(run: PlannedRun, settings: generating.GenerateSettings) -> int:
    report = generating.generate(run.begin(), settings)
    print(
        f"{report.detections} detections in {report.images} images, {report.failed} of which "
        f"cannot be read; {report.images_per_second:.1f} images/s here."
    )
    return 0


# ---- merge


def _add_merge(parser: argparse.ArgumentParser) -> None:
    default = MergeSettings()
    add = parser.add_argument
    add("--class-map", action="append", default=[], metavar="NAME=FILE",
        help="what the classes of a teacher are called; without, as the teacher does")  # fmt: skip
    add("--classes", metavar="DATASET|FILE.txt",
        help="order of all classes: as a data set has them, or a name a line")  # fmt: skip
    add("--merge", choices=MODES, default=default.mode, help="default %(default)s")
    add("--merge-iou", type=float, help=f"IoU that makes two boxes one; default {MODES}")
    add("--score-type", choices=SCORE_TYPES, default=default.score_type, help="of wbf")
    add("--min-votes", type=int, default=default.min_votes, help="of vote, default %(default)s")
    add("--thresholds", choices=THRESHOLD_MODES, default=default.threshold_mode,
        help="which score a label needs, default %(default)s")  # fmt: skip
    add("--threshold", type=float, default=default.threshold, help="default %(default)s")
    add("--beta", type=float, default=default.beta, help="of per_class_fbeta: precision counts "
        "1 / beta times as much as recall; default %(default)s")  # fmt: skip
    add("--limits", type=float, nargs=2, default=default.limits, metavar=("LEAST", "MOST"),
        help="of thresholds that are found by labels; default %(default)s")  # fmt: skip
    add("--threshold-file", metavar="FILE.json", help="class -> threshold, of --thresholds file")
    add("--labels", metavar="DATASET", help="labelled images, for thresholds and the report")


def _merge(args: argparse.Namespace) -> MergeSettings:
    return MergeSettings(
        class_maps=dict(pair("--class-map", x) for x in args.class_map),
        mode=args.merge,
        iou=args.merge_iou,
        score_type=args.score_type,
        min_votes=args.min_votes,
        threshold_mode=args.thresholds,
        threshold=args.threshold,
        beta=args.beta,
        limits=tuple(args.limits),
        threshold_file=args.threshold_file,
        labels=label_set("--labels", args.labels),
        classes=class_names(args.classes),
    )


def _run_merge(args: argparse.Namespace) -> int:
    return _say([merge_run(RunFolder(args.run), _merge(args), _progress)])


# ---- filter


def _add_filter(parser: argparse.ArgumentParser) -> None:
    default = FilterSettings()
    add = parser.add_argument
    add("--ignore-from", type=float, metavar="SCORE",
        help="boxes from here to the threshold are uncertain; default: 0.2 below it")  # fmt: skip
    add("--min-side", type=float, default=default.min_side, help="pixels, default %(default)s")
    add("--min-area", type=float, default=default.min_area, help="pixels, default %(default)s")
    add("--max-aspect", type=float, default=default.max_aspect, help="default %(default)s")
    add("--duplicate-iou", type=float, help="drop the weaker of boxes of different classes")
    add("--max-boxes", type=int, default=default.max_boxes, help="of an image, default %(default)s")
    add("--min-agreement", type=float, help="with the mirrored image; needs generate --flip")
    add("--empty-images", choices=EMPTY_IMAGES, default=default.empty_images,
        help="images without pseudo box, default %(default)s")  # fmt: skip
    add("--max-ambiguous-ratio", type=float, help="drop images with a larger share of uncertain")


def _filter(args: argparse.Namespace) -> FilterSettings:
    return FilterSettings(
        t_ignore=args.ignore_from,
        min_side=args.min_side,
        min_area=args.min_area,
        max_aspect=args.max_aspect,
        duplicate_iou=args.duplicate_iou,
        max_boxes=args.max_boxes,
        min_agreement=args.min_agreement,
        empty_images=args.empty_images,
        max_ambiguous_ratio=args.max_ambiguous_ratio,
    )


def _run_filter(args: argparse.Namespace) -> int:
    return _say([filter_run(RunFolder(args.run), _filter(args))])


# ---- export


def _add_export(parser: argparse.ArgumentParser) -> None:
    default = ExportSettings()
    add = parser.add_argument
    add("--weights", choices=WEIGHT_MODES, default=default.weight_mode,
        help="what a box counts in a training, default %(default)s")  # fmt: skip
    add("--w-min", type=float, default=default.w_min, help="weight at the threshold, of linear")
    add("--ignore", choices=IGNORE_MODES, default=default.ignore,
        help="where uncertain boxes go, default %(default)s")  # fmt: skip
    add("--formats", nargs="+", choices=FORMATS, default=default.formats)
    add("--max-images-per-file", type=int, default=default.max_images_per_file)
    add("--category-ids", metavar="FILE.json", help="class -> id, or a COCO file with categories")


def _export(args: argparse.Namespace) -> ExportSettings:
    return ExportSettings(
        weight_mode=args.weights,
        w_min=args.w_min,
        max_images_per_file=args.max_images_per_file,
        ignore=args.ignore,
        formats=tuple(args.formats),
    )


def _run_export(args: argparse.Namespace) -> int:
    ids = category_ids(args.category_ids)
    return _say(export_run(RunFolder(args.run), _export(args), ids))


# ---- report, sheet, verify


def _add_report(parser: argparse.ArgumentParser) -> None:
    if not any("--labels" in x.option_strings for x in parser._actions):
        parser.add_argument("--labels", metavar="DATASET", help="whose mix of classes to expect")
    parser.add_argument("--truth", metavar="DATASET", help="labels of images of the run")


def _truth(args: argparse.Namespace, labels: LabelSet | None) -> LabelSet | None:
    """What ``--truth`` names; a data set that ``--labels`` names, too, is not read twice."""
    return labels if args.truth == args.labels else label_set("--truth", args.truth)


def _run_report(args: argparse.Namespace) -> int:
    run, labels = RunFolder(args.run), label_set("--labels", args.labels)
    return _say(write_report(run, statistics(run, labels, _truth(args, labels))))


def _add_sheet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=SheetSettings().seed, help="of the choice")


def _sheet(args: argparse.Namespace) -> SheetSettings:
    return SheetSettings(seed=args.seed)


def _run_sheet(args: argparse.Namespace) -> int:
    return _say(write_sheet(RunFolder(args.run), _sheet(args)))


def _run_verify(args: argparse.Namespace) -> int:
    faults = verify(args.run)
    for fault in faults:
        print(fault)
    print(f"{len(faults)} faults." if faults else "All is as it was written.")
    return int(bool(faults))


def _nothing(parser: argparse.ArgumentParser) -> None:
    """Has no arguments of its own."""


STAGES: dict[str, tuple[str, Callable, Callable]] = {
    "generate": ("teachers label the images", _generate, generating.add_arguments),
    "merge": ("one set of boxes of all teachers", _run_merge, _add_merge),
    "filter": ("pseudo boxes, and boxes to ignore", _run_filter, _add_filter),
    "export": ("files for trainings and tools", _run_export, _add_export),
    "report": ("numbers to judge the labels by", _run_report, _add_report),
    "sheet": ("pictures to judge the labels by", _run_sheet, _add_sheet),
    "verify": ("is all as it was written?", _run_verify, _nothing),
}
