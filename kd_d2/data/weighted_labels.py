"""Labels that weigh differently or are incomplete, from a record to the model's input."""

import sys

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from torch import Tensor

from kd_d2.config.names import detector_node
from kd_d2.config.rules import ConfigError
from kd_d2.config.student import student_config
from kd_d2.modeling.label_weights import BOX_WEIGHTS, CLS_WEIGHTS, COVERED, IGNORED, Attached

__all__ = ["WeightedLabelMapper"]


class WeightedLabelMapper(DatasetMapper):
    """Prepares an image for training, with what each of its labels counts.

    Annotations may have "weight", "box_agreement", "score" and "ignore", as
    ``tools/pseudo_label.py`` writes them; "ignore" goes before "iscrowd", by which other mappers
    leave such boxes out. A record may have "covered_classes", ids of the classes that were looked
    for on its image. The ``instances`` get the fields ``gt_weights`` and ``gt_box_weights``, and
    what belongs to the image: boxes to ignore, and the covered classes; see
    ``kd_d2/modeling/label_weights``.
    """

    @configurable
    def __init__(
        self,
        *,
        use_weights: bool = True,
        box_loss: str = "all",
        least_agreement: float = 0.7,
        use_covered: bool = False,
        num_classes: int | None = None,
        **kwargs,
    ):
        """
        Args:
            use_weights, box_loss, least_agreement, use_covered: ENABLED, BOX_LOSS, LEAST_AGREEMENT
                and COVERED of ``MODEL.LABEL_WEIGHTS``.
            num_classes: of the detector, if it is known.
            kwargs: of Detectron2's mapper.
        """
        super().__init__(**kwargs)
        self.use_weights = use_weights
        self.box_loss = box_loss
        self.least_agreement = least_agreement
        self.use_covered = use_covered
        self.classes = range(sys.maxsize if num_classes is None else num_classes)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        node = cfg.MODEL.LABEL_WEIGHTS
        detector = detector_node(student_config(cfg).MODEL.META_ARCHITECTURE)
        return {
            **super().from_config(cfg, is_train),
            "use_weights": node.ENABLED,
            "box_loss": node.BOX_LOSS,
            "least_agreement": node.LEAST_AGREEMENT,
            "use_covered": node.COVERED,
            "num_classes": cfg.MODEL.get(detector, {}).get("NUM_CLASSES"),
        }

    def _transform_annotations(self, dataset_dict, transforms, image_shape):
        # as Detectron2's, with the weights kept beside the objects until empty ones are left out
        used = {"segmentation": self.use_instance_mask, "keypoints": self.use_keypoint}
        unused = [key for key, is_used in used.items() if not is_used]
        moved = [
            utils.transform_instance_annotations(
                {k: v for k, v in x.items() if k not in unused},
                transforms,
                image_shape,
                keypoint_hflip_indices=self.keypoint_hflip_indices,
            )
            for x in dataset_dict.pop("annotations")
            if x.get("ignore", 0) or not x.get("iscrowd", 0)
        ]
        objects = [x for x in moved if not x.get("ignore", 0)]
        instances = utils.annotations_to_instances(
            objects, image_shape, mask_format=self.instance_mask_format
        )
        if self.recompute_boxes:
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        weights = [float(x.get("weight", 1.0)) if self.use_weights else 1.0 for x in objects]
        weights = torch.tensor(weights)
        trains_boxes = torch.tensor([self._trains_boxes(x) for x in objects], dtype=torch.bool)
        instances.set(CLS_WEIGHTS, weights)
        instances.set(BOX_WEIGHTS, weights * trains_boxes)
        uncertain = np.array([x["bbox"] for x in moved if x.get("ignore", 0)]).reshape(-1, 4)
        instances.set(IGNORED, Attached(torch.from_numpy(uncertain).float(), len(objects)))
        if self.use_covered and COVERED in dataset_dict:
            instances.set(COVERED, Attached(self._covered(dataset_dict), len(objects)))
        dataset_dict["instances"] = utils.filter_empty_instances(instances)

    def _covered(self, record: dict) -> Tensor:
        """Ids (k,) of the classes that were looked for.

        Raises:
            ConfigError: an id is none of the detector's.
        """
        ids = record[COVERED]
        if wrong := [x for x in ids if x not in self.classes]:
            raise ConfigError(
                f"{COVERED} of {record['file_name']} has {wrong[0]!r}, which is no class of the "
                "detector: give contiguous ids from 0, in the order of the data set's "
                "thing_classes."
            )
        return torch.tensor(ids, dtype=torch.long)

    def _trains_boxes(self, annotation: dict) -> bool:
        if self.box_loss == "all" or "score" not in annotation:  # a person's
            return True
        agreement = annotation.get("box_agreement", 0.0)
        return self.box_loss == "reliable" and agreement >= self.least_agreement
