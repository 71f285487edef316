"""Who of an image's objects listens to whom, as a matrix.

A teacher that relates objects to each other has a method

    explain(batched_inputs, gt, student) -> list[Relations] | None

with the arguments of its ``forward``: one entry an image, or None where it has nothing to tell.
Teachers without the method have nothing to tell, either.
"""

from typing import Protocol

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

MOST_OBJECTS = 20  # more names than that cannot be read
_LONGEST_NAME = 13


class Relations(Protocol):
    """Attention between the objects of one image.

    Attributes:
        weights: level name -> (R, R); row i says how much i takes from each j, and sums to 1.
        rows: what each of the R is: the number of an object in the annotations, or None for the
            context of the whole image.
        asking, answering: what rows and columns stand for, e.g. "appearance" and "label".
    """

    weights: dict[str, Tensor]
    rows: list[int | None]
    asking: str
    answering: str


def attention_matrix(relations: Relations, level: str | None = None) -> np.ndarray:
    """(R, R) of one level, or the mean of all.

    Raises:
        ValueError: for a level that there is not; names the levels.
    """
    levels = relations.weights
    if level is not None and level not in levels:
        raise ValueError(f"There is no attention of level {level!r}: choose {', '.join(levels)}.")
    chosen = [levels[level]] if level is not None else list(levels.values())
    return np.mean([w.detach().float().cpu().numpy() for w in chosen], axis=0)


def shorten_matrix(
    matrix: np.ndarray, rows: list[int | None], sizes: np.ndarray, most: int = MOST_OBJECTS
) -> tuple[np.ndarray, list[int | None], int]:
    """Keeps the largest objects as rows and columns; what goes to the others becomes one column.

    Args:
        sizes: area of each object, by its number.

    Returns:
        matrix, the rows that are left, and how many objects the last column stands for (0: none,
        and no such column).
    """
    objects = [r for r in rows if r is not None]
    if len(objects) <= most:
        return matrix, rows, 0
    largest = set(sorted(objects, key=lambda r: -sizes[r])[:most])
    keep = np.array([r is None or r in largest for r in rows])
    rest = matrix[keep][:, ~keep].sum(1, keepdims=True)
    kept = [r for r, k in zip(rows, keep, strict=True) if k]
    return np.hstack([matrix[keep][:, keep], rest]), kept, int((~keep).sum())


def draw_attention(
    axes: Axes,
    relations: Relations,
    names: list[str],
    sizes: np.ndarray,
    level: str | None = None,
) -> None:
    """Draws the matrix with a number and a class at each row and column.

    Args:
        names: the class of each object, by its number.
        sizes: the area of each object, by its number.
        level: see :func:`attention_matrix`.
    """
    matrix = attention_matrix(relations, level)
    matrix, rows, others = shorten_matrix(matrix, relations.rows, sizes)
    labels = ["context" if r is None else f"{r + 1} {_shorten(names[r])}" for r in rows]
    columns = labels + ([f"{others} others"] if others else [])
    # Where everybody listens to everybody alike, no cell is to stand out.
    brightest = max(float(matrix[:, : len(rows)].max()), 2 / len(columns))
    axes.imshow(matrix, cmap="viridis", vmin=0, vmax=brightest, aspect="auto")
    font = 6.5 if len(columns) <= 10 else 4.5
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=font)
    axes.set_yticks(range(len(labels)), labels, fontsize=font)
    axes.tick_params(length=0, pad=2)
    axes.set_xlabel(f"{relations.answering} that answers", fontsize=6.5, labelpad=2)
    axes.set_ylabel(f"{relations.asking} that asks", fontsize=6.5, labelpad=2)
    if len(columns) <= 8:
        write_values(axes, matrix, brightest, 6.5 if len(matrix) <= 6 else 5)


def write_values(axes: Axes, matrix: np.ndarray, brightest: float, size: float) -> None:
    """Writes each weight into its cell; ``brightest`` is the weight of the brightest colour."""
    for (i, j), value in np.ndenumerate(matrix):
        bright = value > 0.6 * brightest
        axes.text(
            *(j, i, f"{value:.2f}".lstrip("0") if value < 0.995 else "1"),
            ha="center",
            va="center",
            fontsize=size,
            color="black" if bright else "white",
        )


def _shorten(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
