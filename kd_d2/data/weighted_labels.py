"""Labels that weigh differently, from the annotations to the model's input."""

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils

from kd_d2.modeling.label_weights import BOX_WEIGHTS, CLS_WEIGHTS, IGNORED, Attached

__all__ = ["WeightedLabelMapper"]


class WeightedLabelMapper(DatasetMapper):
    """Prepares an image for training, with what each of its labels counts.

    Annotations may have "weight", "box_agreement", "score" and "ignore", as
    ``tools/pseudo_label.py`` writes them; "ignore" goes before "iscrowd", by which other mappers
    leave such boxes out. The ``instances`` get the fields ``gt_weights`` and
    ``gt_box_weights``, and boxes to ignore, which are no instances; see
    ``kd_d2/modeling/label_weights``.
    """

    @configurable
    def __init__(
        self,
        *,
        use_weights: bool = True,
        box_loss: str = "all",
        least_agreement: float = 0.7,
        **kwargs,
    ):
        """
        Args:
            use_weights, box_loss, least_agreement: ENABLED, BOX_LOSS and LEAST_AGREEMENT of
                ``MODEL.LABEL_WEIGHTS``.
            kwargs: of Detectron2's mapper.
        """
        super().__init__(**kwargs)
        self.use_weights = use_weights
        self.box_loss = box_loss
        self.least_agreement = least_agreement

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        node = cfg.MODEL.LABEL_WEIGHTS
        return {
            **super().from_config(cfg, is_train),
            "use_weights": node.ENABLED,
            "box_loss": node.BOX_LOSS,
            "least_agreement": node.LEAST_AGREEMENT,
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
        dataset_dict["instances"] = utils.filter_empty_instances(instances)

    def _trains_boxes(self, annotation: dict) -> bool:
        if self.box_loss == "all" or "score" not in annotation:  # a person's
            return True
        agreement = annotation.get("box_agreement", 0.0)
        return self.box_loss == "reliable" and agreement >= self.least_agreement
