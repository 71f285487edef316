"""Which regions: candidates of a dense detector, a sample of candidates, jittered objects."""

from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.layers import batched_nms
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.sampling import subsample_labels
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor

from kd_d2.modeling.dense_predictions import DensePredictions
from kd_d2.modeling.regions.seen import Regions


@dataclass(frozen=True)
class RegionSettings:
    """The keys of ``MODEL.KD.REGIONS``, explained there."""

    source: str = "student"
    subset: str = "all"
    topk_per_level: int = 2000
    nms_thresh: float = 0.7
    max_per_image: int = 1000
    batch_size_per_image: int = 512
    positive_fraction: float = 0.25
    iou_threshold: float = 0.5
    append_gt: bool = False
    jitter: float = 0.2
    jittered_per_object: int = 16
    pooler_resolution: int = 7
    pooler_sampling_ratio: int = 2

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "RegionSettings":
        return cls(**{key.lower(): value for key, value in cfg.MODEL.KD.REGIONS.items()})


@dataclass
class Candidates:
    """Boxes of an image that regions are sampled from.

    Attributes:
        boxes: (P, 4) in pixels.
        locations: (P,), see :class:`Regions`; None: no location predicts boxes here.
    """

    boxes: Tensor
    locations: Tensor | None = None


@torch.no_grad()
def class_max_candidates(
    decoded: DensePredictions, image_sizes: list[tuple[int, int]], settings: RegionSettings
) -> list[Candidates]:
    """What a dense detector would propose, if it were the first stage of another.

    As an RPN does it, with the score of the best class in place of objectness: the best of each
    level, clipped to the image, without empty boxes; suppression on each level by itself; the best
    of the image. Every box remembers the location that predicted it.

    Args:
        image_sizes: height and width of each image, without its padding.
    """
    scores = decoded.logits.amax(-1).float().masked_fill(~decoded.valid, -torch.inf)
    taken, levels, start = [], [], 0
    for level, of_level in enumerate(decoded.split_levels(scores)):
        index = of_level.topk(min(settings.topk_per_level, of_level.shape[1]), dim=1).indices
        taken.append(index + start)
        levels.append(torch.full_like(index[0], level))
        start += of_level.shape[1]
    locations, levels = torch.cat(taken, 1), torch.cat(levels)  # (N, P), (P,)
    scores = scores.gather(1, locations)
    boxes = decoded.boxes.float().gather(1, locations[..., None].expand(-1, -1, 4))
    limits = boxes.new_tensor([(w, h, w, h) for h, w in image_sizes])[:, None]
    fits = scores.isfinite() & boxes.isfinite().all(-1)
    boxes = boxes.nan_to_num().clamp(min=0).minimum(limits)
    fits &= (boxes[..., 2:] > boxes[..., :2]).all(-1)
    image, candidate = fits.nonzero(as_tuple=True)
    # no box suppresses one of another image or level
    groups = image * len(decoded.sizes) + levels[candidate]
    keep = batched_nms(
        boxes[image, candidate], scores[image, candidate], groups, settings.nms_thresh
    )  # by falling score
    image, candidate = image[keep], candidate[keep]
    of_images = [candidate[image == i][: settings.max_per_image] for i in range(len(boxes))]
    return [
        Candidates(of_image[index], numbers[index])
        for of_image, numbers, index in zip(boxes, locations, of_images, strict=True)
    ]


@torch.no_grad()
def sample_regions(
    candidates: list[Candidates], gt: list[Instances], settings: RegionSettings
) -> Regions:
    """Positives and negatives of each image at random, as ROI heads sample proposals.

    Args:
        gt: with ``gt_boxes``, of which there may be none.
    """
    matcher = Matcher([settings.iou_threshold], [0, 1])
    boxes, foreground, locations = [], [], []
    for found, objects in zip(candidates, gt, strict=True):
        if settings.append_gt:
            found = _with_objects(found, objects.gt_boxes.tensor)
        _, labels = matcher(pairwise_iou(objects.gt_boxes, Boxes(found.boxes)))
        positive, negative = subsample_labels(
            labels.long(), settings.batch_size_per_image, settings.positive_fraction, 0
        )
        index = torch.cat((positive, negative))
        boxes.append(found.boxes[index])
        foreground.append(labels[index] == 1)
        locations.append(None if found.locations is None else found.locations[index])
    has_locations = locations[0] is not None
    return Regions.of_images(boxes, foreground, locations if has_locations else None)


def _with_objects(found: Candidates, objects: Tensor) -> Candidates:
    locations = found.locations
    if locations is not None:
        locations = torch.cat((locations, locations.new_full((len(objects),), -1)))
    return Candidates(torch.cat((found.boxes, objects.to(found.boxes))), locations)


@torch.no_grad()
def jittered_objects(
    gt: list[Instances], image_sizes: list[tuple[int, int]], settings: RegionSettings
) -> Regions:
    """The objects' boxes, several times each, with every corner moved at random.

    All are called foreground, even where a wide jitter leaves little overlap.
    """
    boxes = []
    for objects, (h, w) in zip(gt, image_sizes, strict=True):
        own = objects.gt_boxes.tensor.repeat(settings.jittered_per_object, 1)
        size = (own[:, 2:] - own[:, :2]).repeat(1, 2)
        moved = own + settings.jitter * size * (2 * torch.rand_like(own) - 1)
        moved = torch.cat(  # a jitter above a half may swap the corners
            (moved[:, :2].minimum(moved[:, 2:]), moved[:, :2].maximum(moved[:, 2:])), 1
        )
        boxes.append(moved.clamp(min=0).minimum(moved.new_tensor((w, h, w, h))))
    return Regions.of_images(boxes, [x.new_ones(len(x), dtype=torch.bool) for x in boxes])
