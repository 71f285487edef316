"""What ``tools/pseudo_label.py`` can be asked for: a subcommand a stage, and all in a row."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from kd_d2.config.rules import ConfigError
from kd_d2.data.reading import read_dataset

from . import generate as generating
from .export import FORMATS, IGNORE_MODES, ExportSettings, export_run
from .filter import filter_run
from .filters import EMPTY_IMAGES, FilterSettings
from .label_set import LabelSet
from .merge import merge_run
from .merge_settings import MODES, MergeSettings
from .merging import SCORE_TYPES
from .report import write_report
from .run_folder import RunFolder
from .sheet import SheetSettings, write_sheet
from .statistics import statistics
from .thresholds import THRESHOLD_MODES
from .verify import verify
from .weights import WEIGHT_MODES

_AFTER = ("merge", "filter", "export", "report", "sheet")


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
    if args.stage != "all":
        return STAGES[args.stage][1](args)
    checked = [settings(args) for settings in (_merge, _filter, _export, _sheet)]
    del checked  # before hours are spent
    _generate(args)
    args.run = Path(args.output)
    return max(STAGES[stage][1](args) for stage in _AFTER)


def _say(paths: list[Path]) -> int:
    print(f"Written: {', '.join(map(str, paths))}")
    return 0


def _progress(done: int, number: int) -> None:
    if sys.stderr.isatty():
        end = "\n" if done == number else ""
        print(f"\rmerging: {done} of {number} shards{end}", end="", file=sys.stderr, flush=True)


# ---- generate


def _generate(args: argparse.Namespace) -> int:
    report = generating.generate(*generating.from_arguments(args))
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
    add("--merge", choices=MODES, default=default.mode, help="default %(default)s")
    add("--merge-iou", type=float, help=f"IoU that makes two boxes one; default {MODES}")
    add("--score-type", choices=SCORE_TYPES, default=default.score_type, help="of wbf")
    add("--min-votes", type=int, default=default.min_votes, help="of vote, default %(default)s")
    add("--thresholds", choices=THRESHOLD_MODES, default=default.threshold_mode,
        help="which score a label needs, default %(default)s")  # fmt: skip
    add("--threshold", type=float, default=default.threshold, help="default %(default)s")
    add("--threshold-file", metavar="FILE.json", help="class -> threshold, of --thresholds file")
    add("--labels", metavar="DATASET", help="labelled images, for thresholds and the report")


def _merge(args: argparse.Namespace) -> MergeSettings:
    return MergeSettings(
        class_maps=dict(_pair("--class-map", x) for x in args.class_map),
        mode=args.merge,
        iou=args.merge_iou,
        score_type=args.score_type,
        min_votes=args.min_votes,
        threshold_mode=args.thresholds,
        threshold=args.threshold,
        threshold_file=args.threshold_file,
        labels=_labels(args.labels),
    )


def _pair(argument: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ConfigError(f"{argument} is {text!r}: it must be NAME=FILE.")
    return name, value


def _labels(name: str | None) -> LabelSet | None:
    if name is None:
        return None
    if name not in DatasetCatalog:
        raise ConfigError(f"--labels {name}: there is no data set of that name.")
    records = read_dataset(name)
    return LabelSet(records, MetadataCatalog.get(name).thing_classes, name)


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


def _category_ids(path: str | None) -> dict[str, int] | None:
    if path is None:
        return None
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if "categories" in content:
            return {x["name"]: x["id"] for x in content["categories"]}
        return {str(name): int(i) for name, i in content.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"--category-ids {path} cannot be read ({error}): give a JSON file of class -> id, or "
            "one in COCO's format."
        ) from None


def _run_export(args: argparse.Namespace) -> int:
    ids = _category_ids(args.category_ids)
    return _say(export_run(RunFolder(args.run), _export(args), ids))


# ---- report, sheet, verify


def _add_report(parser: argparse.ArgumentParser) -> None:
    if not any("--labels" in x.option_strings for x in parser._actions):
        parser.add_argument("--labels", metavar="DATASET", help="whose mix of classes to expect")
    parser.add_argument("--truth", metavar="DATASET", help="labels of images of the run")


def _run_report(args: argparse.Namespace) -> int:
    run = RunFolder(args.run)
    found = statistics(run, _labels(args.labels), _labels(args.truth))
    return _say(write_report(run, found))


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
