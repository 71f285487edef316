"""The demo's pictures: curves, detections, feature maps."""

from pathlib import Path

from kd_d2.experiments.jobs import Job
from kd_d2.experiments.metrics import Metrics
from kd_d2.visualization.curves import plot_curves
from kd_d2.visualization.detections import detect, detection_sheet, ground_truth
from kd_d2.visualization.feature_maps import feature_sheet
from kd_d2.visualization.trained import (
    class_names,
    load_trained,
    model_inputs,
    original_image,
    sample_records,
)

THRESHOLD = 0.3
_DETECTION_IMAGES = 10
_FEATURE_IMAGES = 4


def draw_pictures(
    folder: Path, plain: Job, lgd: Job, runs: dict[str, Metrics]
) -> list[tuple[str, str, str]]:
    """Writes all pictures to a folder; returns title, file name and caption of each."""
    plot_curves(folder / "curves.png", runs)
    plain_cfg, plain_model = _load(plain)
    lgd_cfg, distiller = _load(lgd)
    dataset = plain_cfg.DATASETS.TEST[0]
    records = sample_records(dataset, _DETECTION_IMAGES)
    found = {
        title: detect(model, model_inputs(cfg, records), THRESHOLD)
        for title, cfg, model in (("plain", plain_cfg, plain_model), ("LGD", lgd_cfg, distiller))
    }
    detection_sheet(
        folder / "detections.png",
        [original_image(record) for record in records],
        [ground_truth(record) for record in records],
        found,
        class_names(dataset),
    )
    feature_sheet(
        folder / "features.png", lgd_cfg, distiller, records[:_FEATURE_IMAGES], "instructive"
    )
    return [
        (
            "Curves",
            "curves.png",
            "Left: AP at each evaluation. Middle: the student's own detection loss, without the "
            "teacher's and the distillation's; the vertical line is where distillation begins. "
            "Right: where the dotted line (teacher) is below the "
            "solid one (student), there is something to be learned.",
        ),
        (
            "Detections",
            "detections.png",
            f"{len(records)} validation images spread evenly over the set, with the ten best "
            f"detections of a score of at least {THRESHOLD}. The colour is the predicted class. A "
            "solid box overlaps an object of its class by an IoU of 0.5 or more; a dashed one is "
            "wrong, or a double.",
        ),
        (
            "Student and instructive features",
            "features.png",
            "Where each pyramid level stands out: root mean square over channels, each "
            "standardised over the image as LGD's loss sees it; every map is scaled to its own "
            "range. The teacher has made the instructive features from the student's and the "
            "labels.",
        ),
    ]


def _load(job: Job):
    return load_trained(job.output / "config.yaml", job.output / "model_final.pth")
