#!/usr/bin/env python
"""Generate the built-in data sets before their first use, and look at them.

python datasets/prepare_shapes.py                      # all of shapes, under DETECTRON2_DATASETS
python datasets/prepare_shapes.py --sheet shapes.png   # and a contact sheet of shapes_val
python datasets/prepare_shapes.py shapes_shifted_val --sheet-of shapes_shifted_val --sheet a.png
"""

import argparse
import logging

from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image, ImageDraw

import kd_d2.data  # noqa: F401  registers the data sets

COLUMNS, ROWS, ZOOM = 6, 4, 2


def tile(record: dict, classes: list[str]) -> Image.Image:
    """One image, enlarged, with its boxes (red), outlines (yellow) and class names."""
    image = Image.open(record["file_name"]).convert("RGB")
    image = image.resize((ZOOM * image.width, ZOOM * image.height), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(image)
    for thing in record.get("annotations", []):
        x, y, width, height = (ZOOM * value for value in thing["bbox"])
        draw.rectangle([x, y, x + width, y + height], outline="red")
        for polygon in thing["segmentation"]:
            draw.polygon([ZOOM * value for value in polygon], outline="yellow")
        draw.text((x + 3, y + 1), classes[thing["category_id"]], fill="white")
    return image


def contact_sheet(name: str) -> Image.Image:
    """The first images of a registered data set, side by side."""
    records = DatasetCatalog.get(name)[: COLUMNS * ROWS]
    tiles = [tile(record, MetadataCatalog.get(name).thing_classes) for record in records]
    width, height = tiles[0].size
    sheet = Image.new("RGB", (COLUMNS * width, ROWS * height))
    for index, image in enumerate(tiles):
        sheet.paste(image, (index % COLUMNS * width, index // COLUMNS * height))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ["shapes_train", "shapes_val", "shapes_unlabeled"]
    parser.add_argument("names", nargs="*", default=names, help=f"default: {' '.join(names)}")
    parser.add_argument("--sheet", metavar="PNG", help="write a contact sheet of --sheet-of here")
    parser.add_argument("--sheet-of", default="shapes_val", metavar="NAME")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in args.names:
        print(f"{name}: {len(DatasetCatalog.get(name))} images")
    if args.sheet:
        contact_sheet(args.sheet_of).save(args.sheet)
        print(f"wrote {args.sheet}")


if __name__ == "__main__":
    main()
