"""Tables and the picture of ``pseudo_label_table.py``."""

import json
from pathlib import Path
from statistics import fmean, stdev

from matplotlib.figure import Figure
from shapes_report import mean_sd, provenance

from kd_d2.visualization.curves import COLORS

__all__ = ["draw_few_labels", "provenance", "read_results", "tables"]

ROWS = {
    "labels": {
        "labels": "labels alone, iterations of B + C",
        "b": "B: pseudo labels alone",
        "b_c": "B + C: then labels",
        "b_c_mix": "B + C, in C every other image pseudo-labelled",
        "joint": "labels and pseudo labels at once, iterations of B + C",
        "b_train_only": "B without the images of `shapes_unlabeled`",
        "b_c_train_only": "B + C without them",
        "all_labels": "all labels, iterations of B + C at 20 %",
        "teacher": "teacher (all labels)",
    },
    "same_subset": {
        "teacher": "teacher",
        "b": "B: its pseudo labels alone",
        "b_c": "B + C: then the same labels",
    },
    "two_teachers": {
        "b": "B: pseudo labels of both",
        "b_c": "B + C, labels of all classes",
        "b_c_pseudo": "B + C, labels of the first teacher's classes; others: pseudo boxes",
        "b_c_mask": "B + C, labels of the first teacher's classes; others: masked",
        "b_c_background": "B + C, labels of the first teacher's classes; others: background",
    },
    "domain": {
        "teacher": "teacher, of the source alone",
        "source": "student on labels of the source",
        "labels": "student on few labels of the target, iterations of B + C",
        "b": "B: pseudo labels of the target's images",
        "b_c": "B + C: then few labels of the target",
        "oracle": "student on all labels of the target",
    },
}
TITLES = {
    "labels": "A teacher that has seen all labels",
    "same_subset": "A teacher that has seen the same few labels",
    "two_teachers": "Two teachers of three classes each",
    "domain": "Another look (shapes to shapes_shifted)",
}


# Percent of the labels of a row where results do not say it: teachers' own labels are none of the
# student's, and in the domain part those of the target count.
_SHARES = {("labels", "teacher"): 100, ("same_subset", "teacher"): 10, ("domain", "source"): 0}


def read_results(folder: Path, iterations: int) -> list[dict]:
    """The results that are kept in a folder, of one length of phase B."""
    paths = sorted(folder.glob(f"pseudo_*_{iterations}it_seed*.json"))
    return [json.loads(path.read_text()) for path in paths]


def tables(results: list[dict]) -> str:
    """Markdown: a table for each part, AP as means and sample standard deviations over seeds."""
    parts = []
    for part, rows in ROWS.items():
        mine = [r for r in results if r["part"] == part]
        if not mine:
            continue
        percents = sorted(set(map(_share, mine)))
        lines = [
            f"**{TITLES[part]}**",
            "",
            "| AP with | " + " | ".join(f"{p} % labels" for p in percents) + " | seeds |",
            "|---|" + "---:|" * (len(percents) + 1),
        ]
        for row, title in rows.items():
            runs = [r for r in mine if r["row"] == row]
            if runs:
                cells = [mean_sd(_aps(runs, percent)) for percent in percents]
                seeds = len({r["seed"] for r in runs})
                lines.append(f"| {title} | {' | '.join(cells)} | {seeds} |")
        parts.append("\n".join(lines))
        if part == "labels":
            parts.append(against_all_labels(mine))
    return "\n\n".join(filter(None, parts))


def _share(result: dict) -> int:
    """Percent of the images whose labels were learned."""
    return _SHARES.get((result["part"], result["row"]), result["percent"])


def _ap(result: dict) -> float:
    """A run that detects nothing has no scores at all; its AP is 0."""
    return result["scores"]["AP"] or 0.0


def _aps(runs: list[dict], percent: int) -> list[float]:
    return [_ap(r) for r in runs if _share(r) == percent]


def against_all_labels(results: list[dict]) -> str:
    """Which of the rows with few labels reach the student that has all, seed by seed."""
    whole = {r["seed"]: _ap(r) for r in results if r["row"] == "all_labels"}
    lines = []
    for row in ("labels", "b_c", "b_c_mix", "joint"):
        for percent in sorted({r["percent"] for r in results if r["row"] == row}):
            runs = [r for r in results if (r["row"], r["percent"]) == (row, percent)]
            gains = [_ap(r) - whole[r["seed"]] for r in runs if r["seed"] in whole]
            if gains:
                title = ROWS["labels"][row]
                lines.append(f"| {title} | {percent} % | {mean_sd(gains, '+')} |")
    head = ["| AP against all labels, pairs of equal seed | labels | |", "|---|---:|---:|"]
    return "\n".join([*head, *lines]) if lines else ""


def draw_few_labels(path: Path, results: list[dict]) -> None:
    """One picture: AP over the share of images with labels."""
    mine = [r for r in results if r["part"] == "labels"]
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for row, color in zip(("labels", "joint", "b_c", "b_c_mix"), COLORS, strict=False):
        percents = sorted({r["percent"] for r in mine if r["row"] == row})
        if not percents:
            continue
        values = [_aps([r for r in mine if r["row"] == row], p) for p in percents]
        sd = [stdev(v) if len(v) > 1 else 0.0 for v in values]
        axes.errorbar(
            percents, [fmean(v) for v in values], sd, color=color, marker="o", capsize=3,
            label=ROWS["labels"][row],
        )  # fmt: skip
    for row, style in (("b", "--"), ("all_labels", "-."), ("teacher", ":")):
        values = [_ap(r) for r in mine if r["row"] == row]
        if values:
            axes.axhline(
                fmean(values), color="black", linestyle=style, linewidth=1,
                label=ROWS["labels"][row],
            )  # fmt: skip
    axes.set_xscale("log")
    ticks = sorted({r["percent"] for r in mine if r["percent"]})
    axes.set_xticks(ticks, [f"{p} %" for p in ticks])
    axes.minorticks_off()
    axes.set_xlabel("training images with labels")
    axes.set_ylabel("AP (%)")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)
