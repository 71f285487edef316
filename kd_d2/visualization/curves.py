"""AP and losses over the iterations of several runs."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kd_d2.experiments.metrics import Metrics

COLORS = ("#444444", "#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#66a61e")


def plot_curves(path: Path, runs: dict[str, Metrics]) -> None:
    """Writes one picture: AP, the students' own losses, and teacher against student in each run.

    Args:
        runs: label -> its metrics. A run with a trainable teacher has losses called ``*.tea`` and,
            if it was evaluated, scores under ``bbox_teacher``.
    """
    figure = Figure(figsize=(13.5, 4.0), layout="constrained")
    ap, loss, teacher = figure.subplots(1, 3)
    for (label, metrics), color in zip(runs.items(), COLORS, strict=False):
        ap.plot(*metrics.series("bbox/AP"), "o-", color=color, label=label, markersize=4)
        instructive = metrics.series("bbox_teacher/AP")
        if instructive[0]:
            ap.plot(*instructive, "s:", color=color, label=f"teacher of {label}", markersize=3)
        loss.plot(*metrics.student_loss(), color=color, label=label)
        if metrics.series("loss_cls.tea")[0]:
            teacher.plot(*metrics.series("loss_cls"), color=color, label=f"{label}: student")
            teacher.plot(
                *metrics.series("loss_cls.tea"), ":", color=color, label=f"{label}: teacher"
            )
        start = _distillation_start(metrics)
        if start is not None:
            loss.axvline(start, color=color, linewidth=0.8, linestyle="--")
    _label(ap, "AP on the validation images", "AP (%)")
    _label(loss, "the student's own detection loss", "loss")
    _label(teacher, "classification loss: student against teacher", "loss_cls")
    figure.savefig(path, dpi=110)


def _distillation_start(metrics: Metrics) -> int | None:
    """The first iteration with a feature loss, for methods that begin with a phase without it."""
    on = zip(*metrics.series("lgd/distill_on"), strict=True)
    return next((iteration for iteration, value in on if value > 0), None)


def _label(axes: Axes, title: str, ylabel: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("iteration")
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    # The first losses are many times the last ones, and would flatten everything else.
    values = sorted(v for line in axes.get_lines() for v in line.get_ydata())
    if values and "loss" in ylabel:
        axes.set_ylim(0, 1.1 * values[int(0.97 * (len(values) - 1))])
    if values:
        axes.legend(fontsize=8)
    else:
        axes.text(0.5, 0.5, "nothing recorded", ha="center", transform=axes.transAxes)
