#!/usr/bin/env python
"""List, show and fetch the files of kd_d2's model zoo, whose names MODEL.WEIGHTS understands.

    python tools/model_zoo.py list --kind detector
    python tools/model_zoo.py show coco/faster_rcnn_x101_3x
    python tools/model_zoo.py get coco/faster_rcnn_x101_3x        # prints the local path
    python tools/model_zoo.py get lgd/retinanet_r50 --gdrive-id ID
    python tools/model_zoo.py add lgd/retinanet_r50 FILE

``get`` takes https://, http:// and detectron2:// addresses, too. Files are kept in $KD_D2_CACHE, by
default where Detectron2 keeps them; with KD_D2_OFFLINE=1 nothing is fetched.
"""

import argparse
import json
import logging
import sys

import kd_d2  # noqa: F401  (tells what is missing, if Detectron2 is)
from kd_d2 import model_zoo
from kd_d2.engine import user_errors
from kd_d2.model_zoo.table import KINDS, PREFIX, ZooEntry, ZooError, conversion


def list_entries(args) -> None:
    chosen = [e for e in model_zoo.entries().values() if args.kind in (None, e.kind)]
    if args.json:
        print(json.dumps([_as_dict(entry) for entry in chosen], indent=2))
        return
    rows = [("name", "kind", "box AP", "mask AP", "cached", "config")]
    for entry in chosen:
        ap = ["-" if value is None else f"{value:.1f}" for value in (entry.box_ap, entry.mask_ap)]
        cached = "yes" if model_zoo.cached_file(entry) else "-"
        rows.append((entry.name, entry.kind, *ap, cached, entry.config or "-"))
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    print(f"\nAP on COCO val2017 as the source reports it. Use a name as {PREFIX}NAME.")


def show(args) -> None:
    entry = model_zoo.find(args.name)
    if args.json:
        print(json.dumps(_as_dict(entry), indent=2))
        return
    for key, value in _as_dict(entry).items():
        if value not in (None, ""):
            print(f"{key + ':':14}{value}")
    if entry.convert_from:
        print(f"\nTo use it: {conversion(entry)}")
    else:
        print(f"\nTo use it: MODEL.WEIGHTS {entry.address}")


def get(args) -> None:
    if args.from_file:
        add(argparse.Namespace(name=args.name, file=args.from_file, sha256=args.sha256))
        return
    if "://" in args.name and not args.name.startswith(PREFIX):
        if args.gdrive_id:
            raise ZooError("--gdrive-id goes with a name of the model zoo, not with an address.")
        if not model_zoo.is_fetched_here(args.name):
            raise ZooError(f"'{args.name}' is no address of a kind that is fetched here.")
        print(model_zoo.local_file(args.name, args.sha256))
        return
    entry = model_zoo.find(args.name)
    path = model_zoo.get_file(entry, args.sha256, args.gdrive_id)
    _tell(entry)
    print(path)


def add(args) -> None:
    entry = model_zoo.find(args.name)
    path = model_zoo.add_file(entry, args.file, args.sha256)
    _tell(entry)
    print(path)


def _tell(entry: ZooEntry) -> None:
    if entry.convert_from:
        print(f"To make weights of it: {conversion(entry)}", file=sys.stderr)


def _as_dict(entry: ZooEntry) -> dict:
    cached = model_zoo.cached_file(entry)
    return {**entry.as_dict(), "weights": entry.address, "cached": str(cached) if cached else None}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="list|show|get|add")
    command = commands.add_parser("list", help="all names")
    command.add_argument("--kind", choices=KINDS)
    command.add_argument("--json", action="store_true", help="the whole table")
    command.set_defaults(run=list_entries)
    command = commands.add_parser("show", help="all about one name")
    command.add_argument("name")
    command.add_argument("--json", action="store_true")
    command.set_defaults(run=show)
    command = commands.add_parser("get", help="fetch a file, and print its local path")
    command.add_argument("name", help="a name, or an address")
    command.add_argument("--sha256", help="of the file, to check it by")
    where = command.add_mutually_exclusive_group()
    where.add_argument("--gdrive-id", metavar="ID", help="the file's id in Google Drive, or a link")
    where.add_argument("--from-file", metavar="FILE", help="the same as `add NAME FILE`")
    command.set_defaults(run=get)
    command = commands.add_parser("add", help="put a file that you have under a name")
    command.add_argument("name")
    command.add_argument("file")
    command.add_argument("--sha256", help="of the file, to check it by")
    command.set_defaults(run=add)
    return parser.parse_args(argv)


def main():
    args = parse()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    with user_errors():
        try:
            args.run(args)
        except KeyboardInterrupt:
            print("Stopped; the same command goes on with what has arrived.", file=sys.stderr)
            sys.exit(130)


if __name__ == "__main__":
    main()
