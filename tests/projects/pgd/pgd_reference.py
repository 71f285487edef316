"""PGD from its definition: one object, one image, one location at a time, in plain Python."""

import math


def inside(point, box, transposed=False):
    x, y = point[::-1] if transposed else point
    return x > box[0] and y > box[1] and x < box[2] and y < box[3]


def iou(a, b):
    w = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    h = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return w * h / max(area - w * h, 1e-6)


def fit(points):
    """Weights of points by the normal distribution that is fitted to them."""
    k = len(points)
    mx, my = (sum(p[i] for p in points) / k for i in (0, 1))
    xx = sum((x - mx) ** 2 for x, _ in points) / k
    yy = sum((y - my) ** 2 for _, y in points) / k
    xy = sum((x - mx) * (y - my) for x, y in points) / k
    det = xx * yy - xy * xy + 1e-10
    weights = []
    for x, y in points:
        dx, dy = x - mx, y - my
        distance = (dx * (yy * dx - xy * dy) + dy * (xx * dy - xy * dx)) / det
        weights.append(math.exp(-0.5 * distance))
    return weights


def foreground(logits, predicted, points, valid, boxes, classes, k, exponent, transposed=False):
    """The foreground map of one image.

    Args: lists over locations (logits over classes, too) and objects.
    """
    weights = [0.0] * len(points)
    for box, label in zip(boxes, classes, strict=True):
        scores = [
            (1 / (1 + math.exp(-z[label]))) ** (1 - exponent) * iou(p, box) ** exponent
            for z, p in zip(logits, predicted, strict=True)
        ]
        usable = [a for a in range(len(points)) if valid[a]]
        keys = sorted(usable, key=lambda a: -scores[a])[:k]
        for a, weight in zip(keys, fit([points[a] for a in keys]), strict=True):
            if inside(points[a], box, transposed):
                weights[a] = max(weights[a], weight)
    return weights


def background(points, valid, boxes, transposed=False):
    return [
        float(valid[a] and not any(inside(p, box, transposed) for box in boxes))
        for a, p in enumerate(points)
    ]


def softmax(values, temperature):
    exps = [math.exp(v / temperature) for v in values]
    return [e / sum(exps) for e in exps]


def attentions(feature, temperature):
    """Channel attention [channel][cell], spatial attention [cell] of feature [channel][cell]."""
    num_channels, num_cells = len(feature), len(feature[0])
    columns = [[abs(row[p]) for row in feature] for p in range(num_cells)]
    by_cell = [[num_channels * v for v in softmax(c, temperature)] for c in columns]
    channel = [[by_cell[p][c] for p in range(num_cells)] for c in range(num_channels)]
    spatial = softmax([sum(c) / num_channels for c in columns], temperature)
    return channel, [num_cells * v for v in spatial]


def shares(mask):
    count = sum(v != 0 for v in mask)
    return [v / max(count, 1e-10) for v in mask]


def cls_loss(student, teacher, fore, back, alpha, beta, delta, temperature, share_masks=False):
    """Args: [image][channel][cell]; masks [image][cell]."""
    n, num_channels, num_cells = len(student), len(student[0]), len(student[0][0])
    fore, back = [shares(m) for m in fore], [shares(m) for m in back]
    total = 0.0
    for i in range(n):
        own_channel, own_spatial = attentions(student[i], temperature)
        channel, spatial = attentions(teacher[i], temperature)
        for p in range(num_cells):
            error = sum(
                spatial[p] * channel[c][p] * (student[i][c][p] - teacher[i][c][p]) ** 2
                for c in range(num_channels)
            )
            masks = range(n) if share_masks else [i]
            total += error * sum(alpha * fore[m][p] + beta * back[m][p] for m in masks) / n
            difference = sum(abs(own_channel[c][p] - channel[c][p]) for c in range(num_channels))
            total += delta * difference / (n * num_cells)
            total += delta * abs(own_spatial[p] - spatial[p]) / n
    return total


def reg_loss(student, teacher, fore, gamma, delta, temperature):
    """Args: [image][channel][cell]; mask [image][cell]."""
    total, count, num_channels = 0.0, 0, len(student[0])
    for s, t, mask in zip(student, teacher, fore, strict=True):
        own, aim = attentions(s, temperature)[0], attentions(t, temperature)[0]
        for p, weight in enumerate(mask):
            if weight:
                count += 1
                error = sum(aim[c][p] * (s[c][p] - t[c][p]) ** 2 for c in range(num_channels))
                total += gamma * weight * error / num_channels
                total += delta * sum(abs(own[c][p] - aim[c][p]) for c in range(num_channels))
    return total / count if count else 0.0
