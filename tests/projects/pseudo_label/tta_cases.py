"""The union of views as a slow loop."""


def slow_union(table, nms, topk):
    """(n, 6) -> list: the best one that is left stays, and takes its like away."""
    left, kept = sorted(table.tolist(), key=lambda x: -x[4]), []
    while left and len(kept) < topk:
        best, *others = left
        kept.append(best)
        left = []
        for other in others:
            w = min(best[2], other[2]) - max(best[0], other[0])
            h = min(best[3], other[3]) - max(best[1], other[1])
            both = max(w, 0) * max(h, 0)
            areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (best, other)]
            if best[5] != other[5] or both <= nms * (sum(areas) - both):
                left.append(other)
    return kept
