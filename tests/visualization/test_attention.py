from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from kd_d2.visualization.attention import attention_matrix, draw_attention, shorten_matrix


def relations(n, context=True):
    rows = [None] * context + list(range(n))
    weights = {name: torch.rand(len(rows), len(rows)).softmax(1) for name in ("p3", "p4")}
    return SimpleNamespace(weights=weights, rows=rows, asking="appearance", answering="label")


def test_a_level_or_the_mean_of_all():
    r = relations(2)
    np.testing.assert_allclose(attention_matrix(r, "p4"), r.weights["p4"])
    np.testing.assert_allclose(
        attention_matrix(r), (r.weights["p3"] + r.weights["p4"]) / 2, rtol=1e-6
    )
    with pytest.raises(ValueError, match="no attention of level 'p9': choose p3, p4"):
        attention_matrix(r, "p9")


def test_the_largest_objects_stay_and_the_others_are_summed():
    matrix = np.arange(16, dtype=float).reshape(4, 4)
    rows = [None, 0, 1, 2]
    assert shorten_matrix(matrix, rows, np.array([1, 2, 3]), most=3) == (matrix, rows, 0)
    short, kept, others = shorten_matrix(matrix, rows, np.array([5, 1, 9]), most=2)
    assert kept == [None, 0, 2] and others == 1
    np.testing.assert_array_equal(short, [[0, 1, 3, 2], [4, 5, 7, 6], [12, 13, 15, 14]])
    np.testing.assert_array_equal(short.sum(1), matrix[[0, 1, 3]].sum(1))


@pytest.mark.parametrize("n", [1, 12, 40])
def test_rows_and_columns_are_labelled(n):
    axes = Figure().add_subplot()
    names = [f"a long class name {i}" for i in range(n)]
    draw_attention(axes, relations(n), names, np.arange(n))
    rows = [t.get_text() for t in axes.get_yticklabels()]
    columns = [t.get_text() for t in axes.get_xticklabels()]
    assert rows[0] == columns[0] == "context"
    assert len(rows) == min(n, 20) + 1
    assert columns == rows + (["20 others"] if n == 40 else [])
    assert rows[-1].startswith(f"{n} a long") and len(rows[-1]) <= 16
