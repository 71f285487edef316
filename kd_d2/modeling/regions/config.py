"""The config node of the regions that heads compare, and the rules of its values."""

from detectron2.config import CfgNode as CN

from kd_d2.config.rules import Rule, number, one_of, share, truth, whole

__all__ = ["REGION_VALUES", "add_region_config"]


def add_region_config(cfg: CN) -> None:
    """Adds ``MODEL.KD.REGIONS`` to a config that has ``MODEL.KD``, in place.

    A two-stage student's own regions are its sampled proposals, and the keys of its RPN and its
    ROI_HEADS make them; these here are for all others. Numbers without a word on their source are
    those of Detectron2's and mmdetection's two-stage detectors; the choices are ours.
    """
    regions = cfg.MODEL.KD.REGIONS = CN()
    # Whose boxes: "student", "teacher" (its proposals, or predictions), or "gt_jitter" (those of
    # the annotations, moved and scaled at random).
    regions.SOURCE = "student"
    # "all", or "foreground": those that overlap an object as much as a positive sample does.
    regions.SUBSET = "all"
    # Of what a dense detector predicts: the best so many of each level, by the best class of each
    # location; of these, after suppression on each level, the best so many of an image.
    regions.TOPK_PER_LEVEL = 2000
    regions.NMS_THRESH = 0.7
    regions.MAX_PER_IMAGE = 1000
    # Regions of an image, and the share of positives among them (at most; the rest is filled up
    # with negatives). Positive is what has an IoU of at least so much with an object.
    regions.BATCH_SIZE_PER_IMAGE = 512
    regions.POSITIVE_FRACTION = 0.25
    regions.IOU_THRESHOLD = 0.5
    # Add the objects' own boxes to the candidates. Only heads that read no vectors of a dense
    # student look at them, since no location has predicted them.
    regions.APPEND_GT = False
    # For gt_jitter: the corners are moved by up to this share of width and height, and there are so
    # many boxes of an object. (ours)
    regions.JITTER = 0.2
    regions.JITTERED_PER_OBJECT = 16
    # Regions are pooled to this size from a dense teacher; a two-stage teacher has its own.
    regions.POOLER_RESOLUTION = 7
    # Samples of a bin where the student's levels are pooled for comparison, and those of a dense
    # teacher. 0: as many as there are cells, about 30 x 48 in a bin of an image-sized box on P2. (2
    # is ours; public code of G-DetKD has 0.)
    regions.POOLER_SAMPLING_RATIO = 2


REGION_VALUES: dict[str, dict[str, Rule]] = {
    "MODEL.KD.REGIONS": {
        "SOURCE": one_of("student", "teacher", "gt_jitter"),
        "SUBSET": one_of("all", "foreground"),
        "TOPK_PER_LEVEL": whole(1),
        "NMS_THRESH": number(above=0),
        "MAX_PER_IMAGE": whole(1),
        "BATCH_SIZE_PER_IMAGE": whole(1),
        "POSITIVE_FRACTION": share,
        "IOU_THRESHOLD": number(above=0, below=1),
        "APPEND_GT": truth,
        "JITTER": number(least=0, below=1),
        "JITTERED_PER_OBJECT": whole(1),
        "POOLER_RESOLUTION": whole(1),
        "POOLER_SAMPLING_RATIO": whole(0),
    }
}
