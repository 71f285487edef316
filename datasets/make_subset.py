#!/usr/bin/env python
"""Choose nested random shares of a data set's images, and write which ones they are.

python datasets/make_subset.py --dataset coco_2017_train --percent 1 5 10 --folds 5
python datasets/make_subset.py --annotations own.json --percent 10 --output splits

Each split file <data set>_<percent>p_s<seed>.json lists the ids of the chosen images and has
checksums of these, of the rest and of all; kd_d2.data.subset applies it to Detectron2's records.
"""

import argparse
import json
from pathlib import Path

from detectron2.data import DatasetCatalog

from kd_d2.checkpoint import atomic_write
from kd_d2.data.reading import read_dataset
from kd_d2.data.subsets import (
    PERCENTAGES,
    ImageId,
    SubsetError,
    check_choice,
    image_ids,
    make_split,
    subset_name,
)
from kd_d2.engine import user_errors


def registered_ids(name: str) -> list[ImageId]:
    """Ids of the images of a registered data set."""
    if name not in DatasetCatalog:
        raise SubsetError(f"There is no data set '{name}': register it, or give --annotations.")
    return image_ids(read_dataset(name))


def listed_ids(path: Path) -> list[ImageId]:
    """Ids of the images that a file in COCO's format lists."""
    try:
        return [image["id"] for image in json.loads(path.read_bytes())["images"]]
    except (KeyError, TypeError, ValueError) as error:
        raise SubsetError(f"{path} lists no images as COCO's files do: mend it.") from error


def write_split(folder: Path, split: dict) -> Path:
    """Write a split file; one that is there already must be the same.

    Raises:
        SubsetError: it is another one.
        OSError: it cannot be written.
    """
    name = subset_name(split["dataset"], split["percent"], split["seed"])
    path, text = folder / f"{name}.json", json.dumps(split) + "\n"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(str(path), "w") as f:
            f.write(text)
    elif path.read_text() != text:
        raise SubsetError(
            f"{path} is there and says something else: delete it, or give another --output."
        )
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--dataset", metavar="NAME", help="a registered data set")
    source.add_argument("--annotations", type=Path, metavar="JSON", help="a file in COCO's format")
    usual = " ".join(map(str, PERCENTAGES))
    parser.add_argument(
        "--percent", type=int, nargs="+", default=PERCENTAGES, metavar="P", help=f"default {usual}"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first fold; default 0")
    parser.add_argument("--folds", type=int, default=5, help="fold k has seed + k; default 5")
    folder = Path("datasets/subsets")
    parser.add_argument(
        "--output", type=Path, default=folder, metavar="FOLDER", help=f"default {folder}"
    )
    args = parser.parse_args()
    with user_errors():
        if args.folds < 1:
            raise SubsetError(f"--folds is {args.folds}: give 1 or more.")
        for percent in args.percent:
            check_choice(percent, args.seed)
        name = args.dataset or args.annotations.stem
        ids = registered_ids(name) if args.dataset else listed_ids(args.annotations)
        for seed in range(args.seed, args.seed + args.folds):
            for percent in args.percent:
                split = make_split(name, ids, percent, seed)
                path = write_split(args.output, split)
                print(f"{path}: {split['num_chosen']:,} of {split['num_images']:,} images")


if __name__ == "__main__":
    main()
