"""The figures of a report, as SVG that a page can hold. Equal numbers give equal text."""

import base64
import io

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .statistics import MOST_BOXES, MOST_OFTEN, SCORE_BINS, ClassStatistics, Statistics

BLUE, AMBER, GREY, RED = "#2f6fb3", "#e0a030", "#b9bfc7", "#c8402f"
_WIDTH = 5.0  # inches: on a phone the letters are about as large as the page's
_MOST_CLASSES = 30


def figures(s: Statistics) -> dict[str, str]:
    """Title -> SVG; those without anything to show are left out."""
    found = {}
    if s.images["used"]:
        found["Pseudo boxes per image"] = _boxes_per_image(s)
    if any(x.raw for x in s.classes):
        found["Scores of all merged detections"] = _scores(s)
    if s.labelled is not None:
        found["How frequent the classes are"] = _frequencies(s)
    if s.quality is not None and s.quality.objects:
        found["Precision and recall"] = _precision_recall(s)
    return found


def data_uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def spark(x: ClassStatistics) -> str:
    """The histogram of a class's scores as a small SVG; heights are square roots."""
    heights = np.sqrt(x.scores)
    heights = 20 * heights / max(heights.max(), 1)
    middles = (np.arange(SCORE_BINS) + 0.5) / SCORE_BINS
    bars = "".join(
        f'<rect x="{5 * i}" y="{20 - h:.1f}" width="4.4" height="{h:.1f}" fill="{color}"/>'
        for i, (h, color) in enumerate(zip(heights.tolist(), _colors(middles, x)))
        if h
    )
    return (
        f'<svg viewBox="0 0 100 21" width="100" height="21" role="img" aria-label="scores">{bars}'
        '<rect y="20.4" width="100" height="0.6" fill="#888"/></svg>'
    )


def _colors(scores: np.ndarray, x: ClassStatistics) -> list[str]:
    """Kept, between the thresholds, or below."""
    return [BLUE if s >= x.t_keep else AMBER if s >= x.t_ignore else GREY for s in scores]


def _boxes_per_image(s: Statistics) -> str:
    figure, axes = _figure(2.4)
    counts = np.array(s.boxes_per_image)
    last = int(counts.nonzero()[0].max())
    axes.bar(np.arange(last + 1), counts[: last + 1], 0.9, color=BLUE)
    axes.axvline(s.mean_boxes, color=RED, linewidth=1)
    axes.annotate(
        f"mean {s.mean_boxes:.1f}",
        (s.mean_boxes, 1.0),
        (4, -2),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        color=RED,
    )
    axes.set(xlabel=f"pseudo boxes ({MOST_BOXES}: or more)", ylabel="used images")
    axes.xaxis.get_major_locator().set_params(integer=True)
    return _svg(figure)


def _scores(s: Statistics) -> str:
    """By what becomes of them, each class at its own thresholds."""
    figure, axes = _figure(2.4)
    edges = np.arange(SCORE_BINS) / SCORE_BINS
    middles = edges + 0.5 / SCORE_BINS
    below = np.zeros(SCORE_BINS)
    for color, words in ((BLUE, "t_keep or more"), (AMBER, "t_ignore or more"), (GREY, "below")):
        heights = np.zeros(SCORE_BINS)
        for x in s.classes:
            heights += np.array(x.scores) * [c == color for c in _colors(middles, x)]
        axes.bar(edges, heights, 0.92 / SCORE_BINS, below, align="edge", color=color, label=words)
        below += heights
    if below.max() > 20 * max(below[SCORE_BINS // 2 :].max(), 1):
        axes.set_yscale("symlog", linthresh=max(below[SCORE_BINS // 2 :].max(), 1))
    axes.set(xlabel="score after merging", ylabel="detections", xlim=(0, 1))
    axes.legend(frameon=False, loc="upper right")
    return _svg(figure)


def _frequencies(s: Statistics) -> str:
    classes = [x for x in s.classes if x.labelled_share is not None]
    classes = sorted(classes, key=lambda x: -x.labelled_share)[:_MOST_CLASSES]
    figure, axes = _class_figure(classes)
    rows = np.arange(len(classes))
    colors = [RED if x.alarm else BLUE for x in classes]
    axes.barh(rows, [100 * x.share for x in classes], 0.75, color=colors)
    axes.plot(
        [100 * x.labelled_share for x in classes], rows, "k|", markersize=9, markeredgewidth=1.6
    )
    axes.set_xlabel(
        f"% of the boxes; line: labels of {s.labelled};\nred: {MOST_OFTEN:g} times more or less"
    )
    return _svg(figure)


def _precision_recall(s: Statistics) -> str:
    classes = [x for x in s.classes if x.quality is not None and x.quality.objects]
    classes = sorted(classes, key=lambda x: -x.quality.objects)[:_MOST_CLASSES]
    figure, axes = _class_figure(classes)
    rows = np.arange(len(classes))
    nan = float("nan")
    precision = [nan if x.quality.precision is None else x.quality.precision for x in classes]
    recall = [x.quality.recall for x in classes]
    axes.hlines(rows, np.fmin(precision, recall), np.fmax(precision, recall), color=GREY)
    axes.plot(precision, rows, "o", color=BLUE, label="precision", markersize=8)
    axes.plot(recall, rows, "o", color=AMBER, label="recall", markersize=4.5)
    axes.set(xlim=(-0.02, 1.02))
    axes.legend(frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
    return _svg(figure)


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    return figure, axes


def _class_figure(classes: list[ClassStatistics]) -> tuple[Figure, Axes]:
    """A row for each class, the first on top."""
    figure, axes = _figure(0.9 + 0.21 * len(classes))
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", alpha=0.25)
    axes.set_yticks(np.arange(len(classes)), [x.name for x in classes])
    axes.set_ylim(len(classes) - 0.4, -0.6)
    if len(classes) == _MOST_CLASSES:
        axes.set_ylabel(f"the {_MOST_CLASSES} most frequent ones")
    return figure, axes


def _svg(figure: Figure) -> str:
    out = io.StringIO()
    # ids by chance and the date would change the bytes
    with matplotlib.rc_context({"svg.hashsalt": "pseudo labels"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
