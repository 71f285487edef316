"""Tables and curves from the results of ``shapes_table.py``."""

import json
import shlex
from pathlib import Path
from statistics import fmean, stdev

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kd_d2.experiments.machine import machine_sentence
from kd_d2.experiments.metrics import SCORES
from kd_d2.visualization.curves import COLORS

TITLES = {
    "plain": "plain student",
    "control": "control (LGD, LAMBDA 0)",
    "lgd": "LGD",
    "control_mlp": "control of the next",
    "lgd_mlp": "LGD, our simpler teacher",
    "pkd": "PKD",
    "cwd": "CWD",
    "fgd": "FGD",
    "mgd": "MGD",
    "fgfi": "FGFI",
    "pgd": "PGD",
    "cross_kd": "CrossKD",
    "soft_label": "soft labels",
    "dkd": "DKD",
    "inherit": "teacher's neck and head only",
    "pgd_inherit": "PGD with them",
    "roifi": "regions, assigned level",
    "sgfi": "SGFI",
    "ckd": "CKD",
    "sgfi_ckd": "SGFI + CKD",
    "gdetkd": "G-DetKD, all of it",
    "kd": "soft labels alone (LAD's)",
    "lad": "LAD",
    "solad": "SoLAD",
    "colad": "CoLAD",
    "colad_fisher": "CoLAD, Fisher's score",
    "colad_self": "CoLAD of two equal networks",
}


def title(method: str) -> str:
    """
    >>> title("pkd"), title("pkd@0.1")
    ('PKD', 'PKD x 0.1')
    """
    name, _, factor = method.partition("@")
    return TITLES[name] + (f" x {factor}" if factor else "")


def methods_of(results: list[dict]) -> list[str]:
    """Their methods in the order of TITLES, each before those with a factor."""
    names = list(TITLES)
    return sorted(
        {r["method"] for r in results}, key=lambda m: (names.index(m.partition("@")[0]), m)
    )


def read_results(folder: Path) -> list[dict]:
    """All results that are kept in a folder."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("shapes_*.json"))]


def mean_sd(values: list[float], sign: str = "") -> str:
    """
    >>> mean_sd([1.0, 3.0]), mean_sd([2.0], "+"), mean_sd([])
    ('2.0 ± 1.4', '+2.0', '-')
    """
    if not values:
        return "-"
    sd = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{fmean(values):{sign}.1f}{sd}"


def summary(results: list[dict]) -> str:
    """Markdown: one table for each detector and schedule, means ± sample standard deviations.

    Step times stand beside their ratios to the plain student's, and detection's share is that of
    the detection losses in the gradient of the features in the first iterations. The last column
    pairs runs of equal seed, so that what a seed does to all methods cancels.
    """
    parts = []
    for detector, iterations in sorted(
        {(r["detector"], r["iterations"]) for r in _students(results)}
    ):
        mine = [
            r
            for r in _students(results)
            if (r["detector"], r["iterations"]) == (detector, iterations)
        ]
        plain = {r["seed"]: r for r in mine if r["method"] == "plain"}
        masks = ["mask AP"] * any(_mask_ap(r) is not None for r in mine)
        memory = ["memory"] * any(r.get("peak_memory") for r in mine)
        share = ["detection's share"] * any(r.get("detection_share") for r in mine)
        extra = ["AP of its teacher", *share, "step", *memory]
        columns = ["seeds", *SCORES, *masks, *extra, "AP vs plain"]
        columns += ["mask AP vs plain"] * bool(masks)
        lines = [
            f"**{detector}, {iterations} iterations**",
            "",
            f"| | {' | '.join(columns)} |",
            "|---|" + "---:|" * len(columns),
        ]
        for method in methods_of(mine):
            runs = [r for r in mine if r["method"] == method]
            lines.append(_row(title(method), runs, plain, _teachers(results, runs), columns))
        parts.append("\n".join(lines))
    return "\n\n".join(parts) or "No results yet."


def _students(results: list[dict]) -> list[dict]:
    return [r for r in results if r["method"].partition("@")[0] in TITLES]


def _teachers(results: list[dict], runs: list[dict]) -> list[float]:
    """AP of the teachers of some runs: their own, or the frozen one of their detector."""
    own = [r["teacher_scores"]["AP"] for r in runs if r["teacher_scores"]["AP"] is not None]
    if own:
        return own
    weights = {word for r in runs for word in shlex.split(r["command"]) if "_teacher_" in word}
    names = {Path(word).parent.name for word in weights}
    frozen = [r for r in results if r["method"] == "teacher"]
    frozen = [r for r in frozen if Path(shlex.split(r["command"])[-1]).name in names]
    return [r["scores"]["AP"] or 0.0 for r in frozen]


def _box_ap(result: dict) -> float:
    """A run that detects nothing has no scores at all; its AP is 0."""
    return result["scores"]["AP"] or 0.0


def _mask_ap(result: dict) -> float | None:
    return result.get("mask_scores", {}).get("AP")


def _row(
    title: str, runs: list[dict], plain: dict[int, dict], teachers: list[float], columns: list[str]
) -> str:
    masks = "mask AP" in columns
    cells = [title, str(len(runs)), mean_sd([_box_ap(r) for r in runs])]
    for name in SCORES[1:]:
        cells.append(mean_sd([r["scores"][name] for r in runs if r["scores"][name] is not None]))
    if masks:
        cells.append(mean_sd([_mask_ap(r) or 0.0 for r in runs]))
    cells.append(mean_sd(teachers))
    if "detection's share" in columns:
        shares = [r["detection_share"] for r in runs if r.get("detection_share")]
        cells.append(f"{fmean(shares):.1%}" if shares else "-")
    times = [1e3 * r["seconds_per_step"] for r in runs if r["seconds_per_step"]]
    usual = [1e3 * r["seconds_per_step"] for r in plain.values() if r["seconds_per_step"]]
    times_plain = f" ({fmean(times) / fmean(usual):.2f})" if times and usual else ""
    cells.append(f"{fmean(times):.0f} ms{times_plain}" if times else "-")
    if "memory" in columns:
        memory = [r["peak_memory"] for r in runs if r.get("peak_memory")]
        cells.append(f"{fmean(memory):.0f} MiB" if memory else "-")
    pairs = [(r, plain[r["seed"]]) for r in runs if r["seed"] in plain]
    for ap in (_box_ap, _mask_ap)[: 1 + masks]:
        gains = [(ap(a) or 0.0) - (ap(b) or 0.0) for a, b in pairs]
        cells.append("" if runs[0]["method"] == "plain" else mean_sd(gains, "+"))
    return "| " + " | ".join(cells) + " |"


def provenance(results: list[dict]) -> str:
    """On what the runs were made, one line for each machine and day."""
    machines = {
        f"{machine_sentence(r['machine'])}; {r['workers']} runs side by side, "
        f"{r['threads']} threads each"
        for r in results
    }
    return "\n".join(f"- {line}" for line in sorted(machines))


def draw_curves(path: Path, results: list[dict]) -> None:
    """One picture: AP over the iterations, a plot for each detector and schedule.

    Lines are means over the seeds, bands go from the least to the largest. Teachers are dotted.
    """
    students = _students(results)
    schedules = sorted({(r["detector"], r["iterations"]) for r in students})
    figure = Figure(figsize=(4.6 * max(len(schedules), 1), 3.8), layout="constrained")
    for axes, (detector, iterations) in zip(
        figure.subplots(1, max(len(schedules), 1), squeeze=False)[0], schedules, strict=False
    ):
        mine = [r for r in students if (r["detector"], r["iterations"]) == (detector, iterations)]
        colors = (*COLORS, *colormaps["tab20"].colors)
        for method, color in zip(methods_of(mine), colors, strict=False):
            runs = [r for r in mine if r["method"] == method]
            curves = [r["curve"] for r in runs if r["curve"]]
            _draw(axes, curves, color, "o-", f"{title(method)} ({len(curves)})")
            _draw(axes, [r.get("teacher_curve", []) for r in runs], color, ":")
        axes.set_title(f"{detector}, {iterations} iterations", fontsize=11)
        axes.set_xlabel("iteration")
        axes.set_ylabel("AP (%), dotted: of the teacher")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def draw_gains(path: Path, results: list[dict]) -> None:
    """One picture: AP against the plain student of the same seed, a bar for each method.

    A plot for each detector and schedule; dots are seeds.
    """
    students = _students(results)
    schedules = sorted({(r["detector"], r["iterations"]) for r in students})
    figure = Figure(figsize=(4.6 * max(len(schedules), 1), 3.8), layout="constrained")
    for axes, schedule in zip(
        figure.subplots(1, max(len(schedules), 1), squeeze=False)[0], schedules, strict=False
    ):
        mine = [r for r in students if (r["detector"], r["iterations"]) == schedule]
        plain = {r["seed"]: _box_ap(r) for r in mine if r["method"] == "plain"}
        gains = {
            title(m): [
                _box_ap(r) - plain[r["seed"]]
                for r in mine
                if r["method"] == m and r["seed"] in plain
            ]
            for m in methods_of(mine)
            if m != "plain"
        }
        gains = {name: values for name, values in reversed(gains.items()) if values}
        axes.barh(
            [*gains], [fmean(values) for values in gains.values()], color=COLORS[1], alpha=0.6
        )
        for name, values in gains.items():
            axes.plot(values, [name] * len(values), "k.", markersize=4)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_title("{}, {} iterations".format(*schedule), fontsize=11)
        axes.set_xlabel("AP against the plain student")
        axes.grid(alpha=0.3, axis="x")
    figure.savefig(path, dpi=110)


def _draw(axes: Axes, curves: list, color: str, style: str, label: str | None = None) -> None:
    """Mean and range over the seeds, at the iterations that all of them have."""
    curves = [dict(map(tuple, curve)) for curve in curves if curve]
    if not curves:
        return
    at = sorted(set.intersection(*map(set, curves)))
    values = [[c[i] or 0.0 for c in curves] for i in at]
    axes.plot(at, [fmean(v) for v in values], style, color=color, label=label, markersize=3)
    if len(curves) > 1:
        low, high = [min(v) for v in values], [max(v) for v in values]
        axes.fill_between(at, low, high, color=color, alpha=0.15, linewidth=0)
