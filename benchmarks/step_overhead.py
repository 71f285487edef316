"""What distillation costs: the training step of a plain student, and of its distiller.

    python benchmarks/step_overhead.py --config-file configs/LGD/retinanet_r50_2x_ms.yaml

The steps (forward + backward + optimiser, same synthetic batch) take turns in one process;
times are medians. Peak memory is taken from a fresh process for each. No data set and no weights
are needed.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median

import torch
from detectron2.utils.events import EventStorage
from flops import count_step, flop_counter
from timing import PartMeter, alternate, clock, medians
from torch.autograd.graph import saved_tensors_hooks
from workload import (
    DISTILLED,
    OFF,
    PLAIN,
    autocast,
    build_variant,
    load_config,
    make_batch,
    make_step,
    positive,
)

from kd_d2.engine import build_optimizer, user_errors
from kd_d2.engine.devices import check_device
from kd_d2.experiments.machine import describe_machine, machine_sentence
from kd_d2.experiments.memory import resident_peak
from kd_d2.modeling import build_stages

_MEMORY_STEPS = 3


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", required=True, help="config of a distiller")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--image-size", nargs=2, type=positive, default=[256, 320], metavar=("H", "W")
    )
    parser.add_argument("--batch", type=positive, default=2, help="images per step")
    parser.add_argument("--boxes", type=int, default=8, help="objects per image")
    parser.add_argument("--iters", type=positive, default=10, help="measured steps of each kind")
    parser.add_argument("--json", type=Path, help="write all numbers here, too")
    parser.add_argument("--memory-of", choices=[PLAIN, OFF, DISTILLED], help=argparse.SUPPRESS)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for the config")
    return parser.parse_args(argv)


def _model_and_batch(args: argparse.Namespace, cfg, variant: str):
    model = build_variant(cfg, variant)
    stages = build_stages(getattr(model, "student", model))
    batch = make_batch(
        stages.num_classes, args.batch, *args.image_size, args.boxes, masks=cfg.MODEL.MASK_ON
    )
    return model, batch


def peak_memory_here(args: argparse.Namespace, cfg) -> dict[str, float]:
    """MiB of one variant: the peak of a few steps in this process, what was there before, and what
    autograd keeps of a forward pass."""
    cuda = args.device.startswith("cuda")
    before = 0.0 if cuda else resident_peak()
    model, batch = _model_and_batch(args, cfg, args.memory_of)
    step = make_step(cfg, model, batch)
    for _ in range(_MEMORY_STEPS):
        step()
    peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else resident_peak()
    kept = kept_for_backward(model, batch, autocast(cfg))
    return {"peak": peak, "before": before, "kept": kept}


def kept_for_backward(model: torch.nn.Module, batch: list[dict], context) -> float:
    """MiB of activations that autograd holds when the forward pass is over; no parameters."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor), context:
        losses = model(batch)  # holds the graph, so that no storage is given to another tensor
    del losses
    return sum(kept.values()) / 2**20


def peak_memory(args: argparse.Namespace, variant: str) -> dict[str, float]:
    """:func:`peak_memory_here`, in a fresh process."""
    command = [sys.executable, __file__, "--config-file", args.config_file]
    command += ["--device", args.device, "--batch", args.batch, "--boxes", args.boxes]
    command += ["--image-size", *args.image_size, "--memory-of", variant, *args.opts]
    done = subprocess.run([str(x) for x in command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"Measuring the memory of {variant!r} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_steps(args: argparse.Namespace, cfg) -> tuple[list[dict], torch.nn.Module, list[dict]]:
    """One row for each variant; also the distiller and the batch, for the table of its parts."""
    rows, steps, models = [], {}, {}
    for variant in (PLAIN, OFF, DISTILLED):
        memory = peak_memory(args, variant)
        model, batch = _model_and_batch(args, cfg, variant)
        forward, total = count_step(lambda model=model, batch=batch: model(batch), autocast(cfg))
        models[variant], steps[variant] = model, make_step(cfg, model, batch)
        rows.append(
            {"variant": variant, "memory": memory, "gflop_forward": forward / 1e9}
            | {"gflop": total / 1e9}
        )
    seconds = alternate(steps, args.iters, now=clock(args.device))
    for row in rows:
        row["seconds"] = seconds[row["variant"]]
        row["median"] = median(row["seconds"])
        row["ratio"] = row["median"] / median(seconds[PLAIN])
        # Other programs only ever make a step longer, so the fastest ones are the least disturbed.
        row["fastest_ratio"] = min(row["seconds"]) / min(seconds[PLAIN])
        row["predicted"] = row["gflop"] / rows[0]["gflop"]
    return rows, models[DISTILLED], batch


def measure_parts(args: argparse.Namespace, cfg, distiller, batch: list[dict]) -> list[dict]:
    """One row for each part of the distiller's step; those of the forward pass with their GFLOP."""
    with flop_counter() as counter, autocast(cfg):
        _, flops = PartMeter(distiller, counter.get_total_flops).measure(batch)
    now, rows = clock(args.device), []
    meter = PartMeter(distiller, now)
    optimizer = build_optimizer(cfg, distiller)
    for i in range(-1, args.iters):
        optimizer.zero_grad()
        with autocast(cfg):
            losses, row = meter.measure(batch)
            total = sum(losses.values())
        start = now()
        total.backward()
        row["backward, all parts"] = now() - start
        start = now()
        optimizer.step()
        row["optimiser"] = now() - start
        if i >= 0:
            rows.append(row)
    if not flops["second head pass"]:  # a teacher with a head of its own has none
        rows = [{k: v for k, v in row.items() if k != "second head pass"} for row in rows]
    return [
        {"part": part, "median": t, "gflop": flops[part] / 1e9 if part in flops else None}
        for part, t in medians(rows).items()
    ]


def step_table(rows: list[dict]) -> str:
    """Markdown: one line for each variant; beside each ratio the one that arithmetic predicts."""
    lines = [
        "| training step | median | ratio | of the fastest | of FLOPs | GFLOP forward "
        "| GFLOP in all | kept for backward | peak memory |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    plain = rows[0]["memory"]
    for r in rows:
        kept, peak = (
            f"{r['memory'][k]:.0f} MiB ({100 * (r['memory'][k] / plain[k] - 1):+.0f} %)"
            for k in ("kept", "peak")
        )
        lines.append(
            f"| {r['variant']} | {1e3 * r['median']:.1f} ms | {r['ratio']:.3f} "
            f"| {r['fastest_ratio']:.3f} | {r['predicted']:.3f} | {r['gflop_forward']:.1f} "
            f"| {r['gflop']:.1f} | {kept} | {peak} |"
        )
    return "\n".join(lines)


def parts_table(rows: list[dict]) -> str:
    """Markdown: one line for each part; ratios are to the student's forward pass."""
    lines = [
        "| part of the distilled step | median | ratio to student | ratio of FLOPs | GFLOP |",
        "|---|---:|---:|---:|---:|",
    ]
    student = rows[0]
    for r in rows:
        flops = ("", "")
        if r["gflop"] is not None:
            flops = (f"{r['gflop'] / student['gflop']:.3f}", f"{r['gflop']:.2f}")
        lines.append(
            f"| {r['part']} | {1e3 * r['median']:.1f} ms | {r['median'] / student['median']:.3f} "
            f"| {flops[0]} | {flops[1]} |"
        )
    return "\n".join(lines)


def memory_note(device: str, rows: list[dict]) -> str:
    """What the memory column counts."""
    if device.startswith("cuda"):
        what = "GPU memory of tensors (torch.cuda.max_memory_allocated)"
    else:
        before = rows[0]["memory"]["before"]
        what = f"resident memory of the process, {before:.0f} MiB of it before the model was built"
    return f"Peak memory: {what}; {_MEMORY_STEPS} steps in a fresh process each."


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with user_errors():
        check_device(args.device)
        cfg = load_config(args.config_file, args.device, args.opts)
    with EventStorage():
        if args.memory_of:
            print(json.dumps(peak_memory_here(args, cfg)))
            return
        rows, distiller, batch = measure_steps(args, cfg)
        parts = measure_parts(args, cfg, distiller, batch)
    machine = describe_machine(args.device) | {"threads": torch.get_num_threads()}
    height, width = args.image_size
    print(
        f"{args.config_file}: {args.batch} images of {height}x{width}, {args.boxes} boxes each, "
        f"{args.iters} alternating steps of each kind, {machine['threads']} threads\n"
        f"{machine_sentence(machine)}\n"
    )
    print(step_table(rows))
    print(f"\n{memory_note(args.device, rows)}\n")
    print(parts_table(parts))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        result = {"config": args.config_file, "machine": machine, "steps": rows, "parts": parts}
        result |= {"image_size": args.image_size, "batch": args.batch, "boxes": args.boxes}
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
