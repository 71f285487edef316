"""Runs the teachers of a run over its images; any number of workers, on any number of machines.

A worker takes a shard that nobody has (``claims``), and writes it when its last image is done.
What was written is kept whatever happens, and the same command goes on from there. A shard has the
same bytes whoever writes it.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tqdm import tqdm

from kd_d2.checkpoint import atomic_write

from .claims import Claims
from .leaks import check_no_leak
from .prepare import PlannedRun, plan_run, prepare_run
from .progress import Progress
from .run_folder import RunError, RunFolder
from .settings import GenerateSettings
from .shard_queue import ShardQueue
from .shards import read_shard
from .sources import from_names
from .stopping import StopRequest
from .teachers import parse_teacher
from .worker import Worker

__all__ = [
    "GenerateSettings",
    "Report",
    "add_arguments",
    "from_arguments",
    "generate",
    "prepare_run",
]

_LOOK_AGAIN = 5.0  # seconds, for shards that others leave unfinished


@dataclass(frozen=True)
class Report:
    """
    Attributes:
        images: of the run.
        failed: of them, those that cannot be read.
        detections: of all teachers.
        done_here: images that this worker has done, once for each teacher.
        images_per_second: of this worker.
    """

    images: int
    failed: int
    detections: int
    done_here: int
    images_per_second: float


def generate(run: RunFolder, settings: GenerateSettings) -> Report:
    """Works until all shards of a run are done, by this or by other workers.

    Args:
        settings: those that the run was prepared with; only device, num_workers, max_failed_share
            and the times of the claims may be others.

    Raises:
        RunError: the settings are others, or too many images cannot be read; what is done stays.
        ValueError, OSError: a teacher cannot be used.
        SystemExit: SIGTERM (code 0) or Ctrl-C (130); the shards that are done stay.
    """
    device = settings.torch_device()
    if device.index is not None:  # of a GPU
        torch.cuda.set_device(device)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_reproducible())
        times = settings.heartbeat, settings.stale
        folders = map(run.raw, run.teachers)
        claims = [stack.enter_context(Claims(folder, *times)) for folder in folders]
        stop = stack.enter_context(StopRequest())
        queue = ShardQueue(run, claims, settings.batch)
        if queue.undone():
            worker = stack.enter_context(Worker(run, settings, device, queue))
            progress = stack.enter_context(Progress(run))
            _until_done(worker, progress, stop, min(_LOOK_AGAIN, settings.heartbeat))
        else:
            progress = stack.enter_context(Progress(run))
        if not stop:
            for of_teacher in claims:
                of_teacher.clear()
    if stop:
        left, number = len(queue.undone()), len(run.shards) * len(run.teachers)
        print(
            f"Stopped by {stop.name}: {number - left} of {number} shards are done and stay; the "
            "same command goes on.",
            file=sys.stderr,
        )
        sys.exit(stop.exit_code)
    return _finish(run, settings, progress)


@contextlib.contextmanager
def _reproducible() -> Iterator[None]:
    """No search for the fastest convolution: its outcome depends on the moment."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before


def _until_done(worker: Worker, progress: Progress, stop: StopRequest, pause: float) -> None:
    """Waits for the shards that others have begun, as these may end without having done them."""
    worker.work(progress, stop)
    told = False
    while not stop and (left := worker.queue.undone()):
        if not told:
            tqdm.write(f"Other workers have the last {len(left)} shards.", file=sys.stderr)
            told = True
        stop.sleep(pause)
        worker.work(progress, stop)


def _finish(run: RunFolder, settings: GenerateSettings, progress: Progress) -> Report:
    """Looks through all shards, and writes ``errors.jsonl``: a line for each unreadable image."""
    errors: set[tuple[str, str, str]] = set()
    detections = 0
    for teacher in run.teachers:
        for shard in run.shards:
            contents = read_shard(run.raw(teacher), shard)
            detections += len(contents.detections)
            if contents.failed:
                names = [image.name for image in run.images(shard)]
                for number, reason in contents.failed.items():
                    errors.add((names[number - shard.first], reason, shard.name))
    with Claims(run.folder, settings.heartbeat, settings.stale) as claims:
        if claims.claim("errors"):  # else another worker writes the same
            with atomic_write(str(run.folder / "errors.jsonl"), "w") as f:
                for path, reason, shard_name in sorted(errors):
                    line = {"path": path, "reason": reason, "shard": shard_name}
                    f.write(json.dumps(line) + "\n")
    failed = len({path for path, *_ in errors})
    if failed > settings.max_failed_share * run.num_images:
        path, reason, _ = min(errors)
        raise RunError(
            f"{failed} of {run.num_images} images cannot be read, more than a share of "
            f"{settings.max_failed_share:g} (first {path}: {reason}; all are in "
            f"{run.folder / 'errors.jsonl'}). All else is done. Mend them and run generate, or "
            "all, of tools/pseudo_label.py on this folder with --retry-failed; or allow a larger "
            "share (--max-failed-share, or MAX_FAILED_SHARE in a config) and run again."
        )
    return Report(run.num_images, failed, detections, progress.images, progress.images_per_second)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of :func:`from_arguments`."""
    default = GenerateSettings()
    add = parser.add_argument
    add("--images", nargs="+", required=True, metavar="NAME|FOLDER|FILE.json",
        help="data sets, folders, lists in COCO's format, also as FILE.json,FOLDER; of folders, "
        "--output and other runs below them are left out")  # fmt: skip
    add("--image-root", default="", metavar="DIR", help="folder of the images of a FILE.json")
    add("--teacher", action="append", required=True, metavar="NAME=CONFIG[,WEIGHTS]",
        help="may be given several times; without weights, those of the model zoo")  # fmt: skip
    add("--output", required=True, metavar="DIR", help="folder of the run")
    add("--batch", type=int, default=default.batch, help="images at once, default %(default)s")
    add("--floor", type=float, default=default.floor, help="least score, default %(default)s")
    add("--top-k", type=int, default=default.topk, help="detections of an image at most, "
        "default %(default)s")  # fmt: skip
    add("--nms", type=float, metavar="IOU", help="of two boxes of a class, above which the weaker "
        "is dropped; default: the teacher's own")  # fmt: skip
    add("--flip", action="store_true", help="look at mirrored images, too: twice the time")
    add("--tta-sizes", type=int, nargs="+", default=default.tta_sizes, metavar="N",
        help="shorter sides at which images are looked at instead of the test size; what is found "
        "is united")  # fmt: skip
    add("--tta-flip", action="store_true",
        help="look at each size mirrored, too, and unite what is found")  # fmt: skip
    add("--amp", action="store_true", help="automatic mixed precision")
    add("--device", default="", help="cpu, cuda or cuda:N; default: a GPU if there is one")
    add("--num-workers", type=int, default=default.num_workers,
        help="processes that read images, default %(default)s")  # fmt: skip
    add("--shard-size", type=int, default=default.shard_size,
        help="images that are done or not as a whole, default %(default)s")  # fmt: skip
    add("--max-failed-share", type=float, default=default.max_failed_share,
        help="share of images that may be unreadable, default %(default)s")  # fmt: skip
    add("--new-run", action="store_true",
        help="delete what other settings left in the folder; what equal ones left "
        "stays")  # fmt: skip
    add("--retry-failed", action="store_true",
        help="do the shards again that have images which could not be read")  # fmt: skip
    add("--forbid", nargs="+", default=[], metavar="DATASET",
        help="test sets, none of whose images may be among --images: no file of equal contents, "
        "and none of equal name, whatever its suffix, that shows the same; equal names alone do no "
        "harm")  # fmt: skip
    add("--licence", default="", help="of the images; is noted in the labels")
    add("--origin", default="", help="of the images; is noted in the labels")
    add("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for the teachers' configs")


def from_arguments(args: argparse.Namespace) -> tuple[PlannedRun, GenerateSettings]:
    """The run and the settings that a command line asks for, checked; nothing is written yet.

    Raises:
        ValueError, OSError: it asks for what cannot be.
    """
    settings = GenerateSettings(
        floor=args.floor,
        topk=args.top_k,
        nms=args.nms,
        batch=args.batch,
        flip=args.flip,
        tta_sizes=tuple(args.tta_sizes),
        tta_flip=args.tta_flip,
        amp=args.amp,
        shard_size=args.shard_size,
        device=args.device,
        num_workers=args.num_workers,
        max_failed_share=args.max_failed_share,
    )
    settings.torch_device()
    teachers = [parse_teacher(text, args.opts) for text in args.teacher]
    root, images = from_names(args.images, args.image_root, [args.output])
    check_no_leak(images, args.forbid)
    about = {"licence": args.licence, "origin": args.origin}
    anew = {"new_run": args.new_run, "retry_failed": args.retry_failed}
    return plan_run(args.output, images, root, teachers, settings, **anew, **about), settings
