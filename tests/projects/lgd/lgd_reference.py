"""LGD's teacher and loss once more, slowly: loops over images, objects and cells.

Written from the paper's description, independently of ``projects/LGD``; it takes nothing from there
but the names of the weights. Rows are ordered image by image, annotations in order, context last.
"""

import numpy as np
import torch
from detectron2.structures.masks import polygons_to_bitmask, rasterize_polygons_within_box
from torch import nn
from torch.nn import functional as F


def norm_relu(x):
    return F.relu(F.layer_norm(x, (x.shape[-1],)))


def conv1d(weights, name, x):
    """(T, in) seen as T one-point clouds."""
    return F.conv1d(x[..., None], weights[f"{name}.weight"], weights[f"{name}.bias"])[..., 0]


def linear(weights, name, x):
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def conv3(weights, name, x):
    return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)


def box_mask(box, canvas, size):
    """One mask, cell by cell, in float32 scalars. ``box`` is clamped already."""
    (height, width), (h, w) = canvas, size
    ratios = [np.float32(w / width), np.float32(h / height)] * 2
    x1, y1, x2, y2 = (np.float32(float(v)) * r for v, r in zip(box, ratios, strict=True))
    half = np.float32(0.5)
    cx, cy, bw, bh = (x1 + x2) * half, (y1 + y2) * half, x2 - x1, y2 - y1
    mask = torch.zeros(h, w)
    with np.errstate(divide="ignore", invalid="ignore"):
        for i in range(h):
            for j in range(w):
                in_y = np.abs(cy - np.float32(i)) / bh <= half
                in_x = np.abs(cx - np.float32(j)) / bw <= half
                mask[i, j] = float(in_y and in_x)
    return mask


def clamped(box, canvas):
    height, width = canvas
    x1, y1, x2, y2 = (float(v) for v in box)
    return torch.tensor(
        [
            min(max(x1, 0), width - 1),
            min(max(y1, 0), height - 1),
            min(max(x2, 0), width - 1),
            min(max(y2, 0), height - 1),
        ]
    )


def image_bitmaps(instances, image_size):
    masks = instances.gt_masks
    if hasattr(masks, "polygons"):
        return [torch.from_numpy(polygons_to_bitmask(p, *image_size)) for p in masks.polygons]
    return list(masks.tensor)


def label_map(bitmap, canvas, size):
    """A mask of the un-padded image, padded to the canvas, then resized to a level."""
    full = torch.zeros(canvas)
    full[: bitmap.shape[0], : bitmap.shape[1]] = bitmap.float()
    return F.interpolate(full[None, None], size=tuple(size), mode="nearest")[0, 0]


def describe(instances, canvas, num_classes, context, label_format="one_hot", label_maps=False):
    """One image: clamped boxes (M, 4) and descriptors (M, k)."""
    height, width = canvas
    boxes, classes, pictures = [], [], []
    for n in range(len(instances)):
        box = instances.gt_boxes.tensor[n]
        boxes.append(clamped(box, canvas))
        c = int(instances.gt_classes[n])
        if label_format == "one_hot":
            classes.append(torch.eye(num_classes)[c])
        else:
            classes.append(torch.tensor([c / num_classes]))
        if label_maps:
            masks = instances.gt_masks
            if hasattr(masks, "polygons"):
                picture = rasterize_polygons_within_box(masks.polygons[n], box.numpy(), 7)
            else:
                picture = masks[n].crop_and_resize(box[None], 7)[0]
            pictures.append(picture.flatten().float())
    blank = torch.zeros(num_classes if label_format == "one_hot" else 1)
    if not boxes:
        boxes, classes, pictures = [torch.tensor([0.0, 0, 1, 1])], [blank], [torch.zeros(49)]
    elif context:
        boxes.append(clamped((0, 0, width, height), canvas))
        classes.append(blank)
        pictures.append(torch.ones(49))
    boxes = torch.stack(boxes)
    parts = [boxes / torch.tensor([width, height, width, height]), torch.stack(classes)]
    if label_maps:
        parts.append(torch.stack(pictures))
    return boxes, 2 * torch.cat(parts, 1) - 1


def row_masks(instances, boxes, canvas, size, image_size, context, label_maps):
    if not label_maps:
        return torch.stack([box_mask(box, canvas, size) for box in boxes])
    whole = label_map(torch.ones(image_size), canvas, size)
    if not len(instances):
        return (whole if context else torch.zeros_like(whole))[None]
    masks = [label_map(b, canvas, size) for b in image_bitmaps(instances, image_size)]
    return torch.stack(masks + [whole] * context)


def transform(weights, name, x):
    y = x
    for layer in ("conv1", "conv2", "conv3"):
        y = norm_relu(conv1d(weights, f"{name}.{layer}", y))
    for layer in ("fc1", "fc2"):
        y = norm_relu(linear(weights, f"{name}.{layer}", y))
    k = x.shape[1]
    matrices = linear(weights, f"{name}.fc3", y).reshape(-1, k, k)
    return torch.stack([row @ a for row, a in zip(x, matrices, strict=True)])


def pointnet(weights, x, counts):
    name = "label_encoder_"
    x = transform(weights, f"{name}.stn_desc", x)
    local = transform(weights, f"{name}.stn_feat", norm_relu(conv1d(weights, f"{name}.conv1", x)))
    x = norm_relu(conv1d(weights, f"{name}.conv2", local))
    x = norm_relu(conv1d(weights, f"{name}.conv3", x))
    shared = torch.cat([g.max(0, keepdim=True)[0].expand(len(g), -1) for g in x.split(counts)])
    return norm_relu(conv1d(weights, f"{name}.conv4", torch.cat([local, shared], 1)))


def mlp(weights, x):
    x = norm_relu(linear(weights, "label_encoder_.fc1", x))
    return norm_relu(linear(weights, "label_encoder_.fc2", x))


def attend(weights, query, key, counts, num_heads):
    """One sequence of all rows of the batch; rows of different images do not see each other."""
    image = torch.cat([torch.full((n,), b) for b, n in enumerate(counts)])
    attention = nn.MultiheadAttention(query.shape[1], num_heads)
    prefix = "multi_head_attn."
    own = {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)}
    out, _ = torch.func.functional_call(
        attention,
        own,
        (query[:, None], key[:, None], key[:, None]),
        {"attn_mask": image[:, None] != image[None]},
    )
    return out[:, 0]


def instructive_features(
    weights,
    features,
    gt,
    canvas,
    image_sizes,
    *,
    num_classes,
    context=True,
    pattern="stuGuided",
    num_heads=8,
    detach=False,
    label_format="one_hot",
    label_maps=False,
):
    """Level name -> (B, C, h, w), from a state dict (or named parameters) of the teacher."""
    described = [describe(x, canvas, num_classes, context, label_format, label_maps) for x in gt]
    counts = [len(boxes) for boxes, _ in described]
    descriptors = torch.cat([d for _, d in described])
    is_pointnet = "label_encoder_.conv4.weight" in weights
    labels = pointnet(weights, descriptors, counts) if is_pointnet else mlp(weights, descriptors)
    labels = norm_relu(linear(weights, "canoni_proj_1D.0.0", labels))

    out = {}
    for name, x in features.items():
        size = x.shape[-2:]
        masks = [
            row_masks(g, boxes, canvas, size, s, context, label_maps)
            for g, (boxes, _), s in zip(gt, described, image_sizes, strict=True)
        ]
        y = conv3(weights, "student_proj_2D.0.0", x.detach() if detach else x)
        y = F.relu(F.group_norm(y, 1))
        appearance = []
        for b in range(len(gt)):
            for mask in masks[b]:
                cells = mask.sum().clamp(min=1)
                appearance.append((y[b] * mask).sum((1, 2)) / cells)
        appearance = torch.stack(appearance)

        if pattern == "stuGuided":
            rows = attend(weights, appearance, labels, counts, num_heads)
        elif pattern == "labelGuided":
            rows = attend(weights, labels, appearance, counts, num_heads)
        else:
            rows = appearance if pattern == "student_fill" else labels

        maps = []
        for b, own in enumerate(rows.split(counts)):
            objects = own[:-1] if context else own
            painted = torch.zeros(x.shape[1], *size)
            for e, mask in zip(objects, masks[b], strict=False):
                e = linear(weights, "local_inst_proj_1D", e)
                painted = painted + e[:, None, None] * mask
            s = conv3(weights, "local_inst_proj_2D", painted[None])[0]
            if context:
                s = s + linear(weights, "global_ctx_proj_1D", own[-1])[:, None, None]
            maps.append(F.relu(s))
        z = torch.stack(maps)
        z = F.relu(F.group_norm(conv3(weights, "refinement_module.0", z), 1))
        z = F.relu(F.group_norm(conv3(weights, "refinement_module.3", z), 1))
        out[name] = F.group_norm(conv3(weights, "refinement_module.6", z), 1)
    return out


def distillation_loss(adapter, features, instructive):
    """InstanceNorm on both sides, all levels flattened into one vector an image, one MSE."""
    names = sorted(set(features) & set(instructive))
    norm = nn.InstanceNorm2d(next(iter(features.values())).shape[1])
    sides = []
    for maps in (
        [adapter(features[n]) for n in names],
        [instructive[n].detach() for n in names],
    ):
        sides.append(torch.cat([norm(m).flatten(1) for m in maps], 1))
    return F.mse_loss(*sides)
