#!/usr/bin/env python
"""Convert a checkpoint of another code base into one of kd_d2.

    python tools/convert_checkpoint.py --from lgd official.pth output/lgd/model.pth \
        --config-file configs/LGD/retinanet_r50_2x_ms.yaml

With --student-only it writes the student alone, a plain detector, and student.yaml beside it. KEY
VALUE pairs override the config. The file is read without running code that it may contain.
"""

import argparse
import os
import shlex

from detectron2.modeling import build_model

import kd_d2  # noqa: F401  (registers models and converters)
from kd_d2.checkpoint import atomic_write, local_weights_path, read_checkpoint
from kd_d2.checkpoint.converters import (
    CHECKPOINT_CONVERTERS,
    convert_checkpoint,
    write_weights,
)
from kd_d2.config.check import check_config
from kd_d2.config.student import is_distiller, student_config
from kd_d2.engine import load_config, user_errors
from kd_d2.engine.export import CONFIG_NAME, student_yaml


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    formats = sorted(name for name, _ in CHECKPOINT_CONVERTERS)
    parser.add_argument(
        "--from", dest="source", required=True, help=f"whose checkpoint: {', '.join(formats)}"
    )
    parser.add_argument("input", metavar="IN", help="the foreign checkpoint: a file or an address")
    parser.add_argument("output", metavar="OUT", help="the file to write")
    parser.add_argument("--config-file", required=True, help="kd_d2's config of this model")
    parser.add_argument("--student-only", action="store_true", help="leave the teacher out")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    parser.add_argument("opts", metavar="KEY VALUE", nargs="*", help="overrides of the config")
    with user_errors():
        convert(parser.parse_intermixed_args())


def convert(args):
    """Convert, write and report.

    Raises:
        ValueError: with one sentence on what is wrong with the arguments, the config or the file.
        OSError: if a file is missing or cannot be written.
    """
    CHECKPOINT_CONVERTERS.get(args.source)
    yaml = os.path.join(os.path.dirname(os.path.abspath(args.output)), CONFIG_NAME)
    check_output(args, [args.output, yaml] if args.student_only else [args.output])
    cfg = load_config(args.config_file, args.opts)
    model = build(cfg, args.student_only)
    checkpoint = read_checkpoint(local_weights_path(args.input))
    conversion = convert_checkpoint(args.source, checkpoint.pop("model"), model)
    write_weights(args.output, conversion.state, model)
    if args.student_only:
        with atomic_write(yaml, "w") as f:
            f.write(student_yaml(cfg, os.path.abspath(args.output)))

    what = "the student alone" if args.student_only else "a distillation checkpoint"
    print(f"Converted '{args.input}' to '{args.output}', {what}.")
    print(conversion.summary())
    if "iteration" in checkpoint:
        print(f"iteration: {checkpoint.pop('iteration')}")
    if checkpoint:
        print(f"ignored: {', '.join(map(str, checkpoint))} (training does not go on from here)")
    print("Evaluate it with:")
    if args.student_only:
        print(f"  python train_net.py --config-file {shlex.quote(yaml)} --eval-only")
        return
    overrides = ["MODEL.WEIGHTS", args.output, *args.opts]
    if cfg.MODEL.KD.EVAL_TEACHER:
        overrides += ["MODEL.KD.EVAL_TEACHER", "False"]
    print(
        f"  python train_net.py --config-file {shlex.quote(args.config_file)} --eval-only "
        f"{shlex.join(overrides)}"
    )


def check_output(args, outputs):
    """Refuse to write over anything, before the work is done."""
    if "://" in args.output or not args.output.endswith(".pth"):
        raise ValueError(f"OUT is '{args.output}'; it must be a local file name ending in .pth.")
    if os.path.realpath(args.output) == os.path.realpath(args.input):
        raise ValueError("IN and OUT are the same file: give another name to write to.")
    for path in outputs:
        if os.path.exists(path) and not args.overwrite:
            raise ValueError(f"'{path}' exists: give another OUT, or --overwrite to replace it.")


def build(cfg, student_only):
    """The model to fill, on the CPU."""
    cfg = (student_config(cfg) if student_only else cfg).clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    check_config(cfg)
    if not is_distiller(cfg) and not student_only:
        raise ValueError(
            f"The config is that of a plain {cfg.MODEL.META_ARCHITECTURE}: give a distillation "
            "config, or --student-only."
        )
    return build_model(cfg)


if __name__ == "__main__":
    main()
