"""A trained model, and labelled images to look at."""

from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.detection_utils import read_image
from detectron2.modeling import build_model
from torch import nn

from kd_d2.checkpoint import KDCheckpointer
from kd_d2.data.mappers import build_annotated_test_mapper
from kd_d2.engine import load_config
from kd_d2.engine.devices import check_device
from kd_d2.visualization.sources import spread


def load_trained(
    config_file: str | Path, weights: str | Path, device: str = "cpu", overrides: list[str] = ()
) -> tuple[CfgNode, nn.Module]:
    """Builds the config's model in eval mode and fills it.

    Args:
        weights: of all that the config trains: a distiller's full checkpoint, say.

    Raises:
        CheckpointError: a part of the model would stay random.
        ValueError: there is no such device.
    """
    check_device(device)
    cfg = load_config(str(config_file), list(overrides))
    cfg.MODEL.DEVICE = device
    cfg.MODEL.WEIGHTS = str(weights)
    cfg.freeze()
    model = build_model(cfg).eval()
    checkpointer = KDCheckpointer(model)
    checkpointer.load(cfg.MODEL.WEIGHTS)
    for part in checkpointer.loaded_parts:
        checkpointer.require_whole(part)
    return cfg, model


def sample_records(dataset: str, count: int, min_objects: int = 2) -> list[dict]:
    """Records spread evenly over a data set, so nobody has picked them for their looks.

    Args:
        min_objects: images with fewer are passed over, if enough others are left.
    """
    records = get_detection_dataset_dicts(dataset, filter_empty=False)
    busy = [r for r in records if len(r.get("annotations", ())) >= min_objects]
    records = busy if len(busy) >= count else records
    return spread(records, count)


def model_inputs(cfg: CfgNode, records: list[dict]) -> list[dict]:
    """The records as a model gets them at test time, with their labels."""
    mapper = build_annotated_test_mapper(cfg)
    return [mapper(record) for record in records]


def original_image(record: dict) -> np.ndarray:
    """(H, W, 3) uint8, RGB."""
    return read_image(record["file_name"], "RGB")


def class_names(dataset: str) -> list[str]:
    """The names of a data set's classes, in the order of their ids."""
    return list(MetadataCatalog.get(dataset).thing_classes)
