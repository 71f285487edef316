#!/usr/bin/env python
"""Convert CrowdHuman's annotations (.odgt) to COCO's format, and tell what was dropped.

python datasets/prepare_crowdhuman.py        # train and val, under DETECTRON2_DATASETS/crowdhuman
python datasets/prepare_crowdhuman.py val    # one split

It reads annotation_<split>.odgt and Images/ there, and writes annotations/<split>.json.
"""

import argparse
import json
import logging
import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from PIL import ExifTags, Image

from kd_d2.checkpoint.atomic import atomic_write
from kd_d2.data.crowdhuman import SPLITS, split_files, why_untrainable
from kd_d2.engine import user_errors
from kd_d2.model_zoo.progress import Progress

CATEGORIES = [{"id": 1, "name": "person"}]


class OdgtError(ValueError):
    """A line that cannot be converted; the message names it."""


def convert(odgt: Path, image_root: Path, json_file: Path) -> Counter:
    """Convert one file, line by line: only the images' names are held in memory.

    Args:
        odgt: one JSON object a line, with an ID and its gtboxes.
        image_root: has the image <ID>.jpg of each line.
        json_file: appears when it is complete.

    Returns:
        how many of what there were; see `report`.

    Raises:
        OdgtError: a line or an image is not as it should be.
        OSError: a file cannot be read or written.
    """
    counts, lines, total = Counter(), {}, odgt.stat().st_size
    json_file.parent.mkdir(parents=True, exist_ok=True)
    with (
        open(odgt, "rb") as source,
        atomic_write(str(json_file), "w") as target,
        # COCO lists all images and then all objects: those wait on disk
        tempfile.TemporaryFile("w+", dir=json_file.parent) as waiting,
        Progress(odgt.name) as progress,
    ):
        target.write(f'{{"categories": {json.dumps(CATEGORIES)},\n"images": [\n')
        done = 0
        for index, line in enumerate(source):
            done += len(line)
            progress.update(done, total)
            if not line.strip():
                continue
            try:
                name, boxes = parse_line(line)
                if name in lines:
                    raise OdgtError(f"has the ID {name!r} of line {lines[name]} again")
                lines[name] = index + 1
                image = {"id": index, **describe_image(image_root / f"{name}.jpg")}
            except OdgtError as error:
                raise OdgtError(
                    f"{odgt}, line {index + 1} {error}: fetch the file and the images anew, or "
                    "mend or delete that line."
                ) from error.__cause__
            labels = list(annotations(boxes, image, counts))
            target.write(f"{',' * bool(counts['images'])}{json.dumps(image)}\n")
            counts["images"] += 1
            counts["images without persons"] += all(label["iscrowd"] for label in labels)
            for label in labels:
                separator = "," * bool(counts["boxes"])
                counts["boxes"] += 1
                waiting.write(f"{separator}{json.dumps({'id': counts['boxes'], **label})}\n")
        if not lines:
            raise OdgtError(f"{odgt} is empty: fetch it anew.")
        target.write('],\n"annotations": [\n')
        waiting.seek(0)
        shutil.copyfileobj(waiting, target)
        target.write("]}\n")
    return counts


def parse_line(line: bytes) -> tuple[str, list[dict]]:
    """The ID and the boxes of a line.

    Raises:
        OdgtError: what is wrong, to be continued after the line's number.
    """
    try:
        content = json.loads(line)
    except ValueError as error:
        raise OdgtError(f"is no JSON ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("ID"), str):
        raise OdgtError("has no ID")
    boxes = content.get("gtboxes")
    if not isinstance(boxes, list) or not all(isinstance(box, dict) for box in boxes):
        raise OdgtError("has no list of gtboxes")
    for box in boxes:
        if not is_box(box.get("fbox")) or not is_box(box.get("vbox", box["fbox"])):
            raise OdgtError("has an fbox or vbox that is not four numbers x, y, w, h")
        if not isinstance(box.get("extra", {}), dict):
            raise OdgtError("has a box whose extra is not a dict")
    return content["ID"], boxes


def is_box(values: object) -> bool:
    return (
        isinstance(values, list)
        and len(values) == 4
        and all(isinstance(x, (int, float)) and math.isfinite(x) for x in values)
    )


def describe_image(path: Path) -> dict:
    """The COCO entry of an image, but for its id; reads the header only.

    Raises:
        OdgtError: it is missing or is no image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except FileNotFoundError as error:
        raise OdgtError(f"needs the image {path}, which is missing") from error
    except Exception as error:  # Pillow's own, OSError, SyntaxError, struct.error, ...
        reason = f"{type(error).__name__}: {error}"
        raise OdgtError(f"needs the image {path}, which cannot be read ({reason})") from error
    if orientation >= 5:  # lies on its side; Detectron2 turns it when it reads it
        width, height = height, width
    return {"file_name": path.name, "width": width, "height": height}


def annotations(boxes: list[dict], image: dict, counts: Counter) -> Iterator[dict]:
    """Yield the COCO annotations of an image, but for their ids.

    Args:
        image: gets `persons_without_area` where there are any: AP and MR count them as missed.
        counts: is counted up.
    """
    for box in boxes:
        reason = why_ignored(box)
        kind = "ignore regions" if reason else "persons"
        x, y, w, h = box["fbox"]
        if w <= 0 or h <= 0:
            counts[f"{kind} without area"] += 1
            if not reason:
                image["persons_without_area"] = image.get("persons_without_area", 0) + 1
            continue
        untrainable = why_untrainable(box["fbox"], image["width"], image["height"])
        counts.update([kind, reason, f"{kind} {untrainable}"])
        label = {"image_id": image["id"], "category_id": 1, "bbox": box["fbox"], "area": w * h}
        if "vbox" in box:
            label["visible_bbox"] = box["vbox"]
        yield {**label, "iscrowd": int(bool(reason))}


def why_ignored(box: dict) -> str | None:
    """Why a box is a region to ignore; None for a person to find."""
    if box.get("tag") != "person":
        return "not tagged as a person"
    if box.get("extra", {}).get("ignore", 0) != 0:
        return "marked with extra.ignore"
    return None


def report(counts: Counter) -> str:
    """What was converted and what was dropped, as text."""
    lines = [
        f"{counts['images']:,} images, {counts['images without persons']:,} without a person",
        f"{counts['persons']:,} persons",
        f"{counts['ignore regions']:,} ignore regions: "
        + ", ".join(
            f"{counts[reason]:,} {reason}"
            for reason in ("not tagged as a person", "marked with extra.ignore")
        ),
        f"dropped: {_both(counts, 'without area')}; AP and MR still count such persons as missed",
        f"left out of training only: {_both(counts, 'outside the image')}; "
        f"{_both(counts, 'thinner than a pixel')}",
    ]
    return "\n".join(f"  {line}" for line in lines)


def _both(counts: Counter, where: str) -> str:
    persons, regions = counts[f"persons {where}"], counts[f"ignore regions {where}"]
    return f"{persons:,} persons and {regions:,} ignore regions {where}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("splits", nargs="*", metavar="SPLIT", help="train, val; default: both")
    root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
    parser.add_argument("--root", default=root, help="has the folder crowdhuman; now %(default)s")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with user_errors():
        unknown = set(args.splits) - set(SPLITS)
        if unknown:
            raise ValueError(f"There is no split '{min(unknown)}': give train, val or both.")
        for split in args.splits or SPLITS:
            odgt, json_file, images = split_files(args.root, split)
            counts = convert(odgt, images, json_file)
            print(f"wrote {json_file}\n{report(counts)}", flush=True)


if __name__ == "__main__":
    main()
