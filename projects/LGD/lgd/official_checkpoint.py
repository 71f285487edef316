"""Checkpoints that LGD's authors published, or that their code wrote, in kd_d2's names.

Their trainer saves ``model``, ``stu_optimizer``, ``tea_optimizer``, ``stu_scheduler``,
``tea_scheduler`` and ``iteration``. Weights have the same shapes as ours, and names that differ in
their beginnings, see ``RENAMED``. The bottom-up network is moved out of the student's backbone,
whose remains, the feature pyramid, are saved a second time. Norms of teacher and adapter have no
entries.

``python tools/convert_checkpoint.py --from lgd`` uses this.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kd_d2.checkpoint import CheckpointError, student_state
from kd_d2.checkpoint.converters import (
    CHECKPOINT_CONVERTERS,
    FOREIGN_NAMES,
    Conversion,
    first_few,
    misfit,
)
from kd_d2.checkpoint.weight_settings import detector_settings, differing_settings

from .descriptors import LABEL_FORMATS, descriptor_width

State = Mapping[str, Tensor]

# how their name begins -> how ours does; the rest stays
RENAMED = {
    # ResNet (stem, res2 ... res5, with conv2_offset in deformable blocks), or Swin (patch_embed,
    # layers, and one norm for each output, whose numbers are matched to ours)
    "student.raw_backbone.": "student.backbone.bottom_up.",
    # fpn_lateral2 ... 5, fpn_output2 ... 5, top_block.p6, top_block.p7
    "student.backbone.": "student.backbone.",
    # RetinaNet; FCOS: towers at 0, 3, 6, 9, their GroupNorms at 1, 4, 7, 10, scales.0 ... 4
    "student.head.": "student.head.",
    # Faster and Mask R-CNN
    "student.proposal_generator.rpn_head.": "student.proposal_generator.rpn_head.",
    "student.roi_heads.": "student.roi_heads.",
    # label_encoder_, canoni_proj_1D, student_proj_2D, multi_head_attn, local_inst_proj_1D,
    # local_inst_proj_2D, global_ctx_proj_1D, refinement_module
    "teacher.": "teacher.",
    "adapter.distill.adapter.": "heads.InstructiveFeatures.distill.adapter.",
}
# The pyramid again: how the second name begins -> how the first does.
SECOND_NAMES = {"student.fpn.": "student.backbone."}
# What the config determines. Detectron2 0.3 saved it, today's does not (but Swin's index).
CONSTANTS = re.compile(
    r"student\.(pixel_mean|pixel_std|(proposal_generator\.)?anchor_generator\.cell_anchors\.\d+"
    r"|raw_backbone\.layers\..*\.relative_position_index)"
)
# Window masks that some Swin releases save; they depend on the size of the input.
RECOMPUTED = re.compile(r"student\.raw_backbone\.layers\..*\.attn_mask")

# what to set where a constant differs
_SETTING = {
    "pixel_mean": "MODEL.PIXEL_MEAN",
    "pixel_std": "MODEL.PIXEL_STD",
    "cell_anchors": "MODEL.ANCHOR_GENERATOR.SIZES and ASPECT_RATIOS",
    "relative_position_index": "the window size of Swin",
}
_TEACHER_PARTS = ("teacher.", "adapter.")


FOREIGN_NAMES["lgd"] = "student.raw_backbone."


@CHECKPOINT_CONVERTERS.register("lgd")
def convert_official(
    state: State, model_state: State, constants: State, student_only: bool = False
) -> Conversion:
    """Gives the weights of an official LGD checkpoint the names of a kd_d2 distiller.

    Args:
        state: ``model`` of the file.
        model_state: what to fill: the state dict of an LGD distiller, or its ``student.*`` alone.
        constants: buffers of the same model, whether saved or not. Those of the file must agree.
        student_only: drop teacher and adapter, if the file has them.

    Raises:
        CheckpointError: see :mod:`kd_d2.checkpoint.converters`.
    """
    _recognise(state)
    if not student_only:
        _check_teacher(state, model_state)
    norms = _output_norms(state, model_state)
    result = Conversion()
    for name, value in state.items():
        beginning = next((p for p in (*SECOND_NAMES, *RENAMED) if name.startswith(p)), None)
        if CONSTANTS.fullmatch(name):
            result.dropped[name] = "constants that the config determines, and they agree"
        elif RECOMPUTED.fullmatch(name):
            result.dropped[name] = "window masks, which are computed for each input"
        elif beginning in SECOND_NAMES:
            _check_copy(state, name, SECOND_NAMES[beginning] + name[len(beginning) :])
            result.dropped[name] = "the feature pyramid a second time, equal to the first"
        elif student_only and name.startswith(_TEACHER_PARTS):
            result.dropped[name] = "teacher and adapter, not part of the student"
        elif beginning is not None:
            name_in_ours = norms.get(name) or RENAMED[beginning] + name[len(beginning) :]
            result.use(name, name_in_ours, value)
    unknown = [k for k in state if k not in result.used and k not in result.dropped]
    if unknown:
        raise CheckpointError(
            f"The file has {len(unknown)} entries that no checkpoint of the authors' LGD has "
            f"({first_few(unknown)}), and leaving them out might change the model."
        )
    for name in model_state:
        if name.endswith("relative_position_index"):  # _check_constants sees to the file's
            result.state[name] = constants[name]
    _check_fit(result.state, model_state)
    _check_constants(state, constants)
    return result


def _recognise(state: State) -> None:
    """
    Raises:
        CheckpointError: says what else the file is.
    """
    if any(k.startswith(FOREIGN_NAMES["lgd"]) for k in state):
        return
    if any(k.startswith(("student.backbone.bottom_up.", "heads.")) for k in state):
        raise CheckpointError(
            "The file is a distillation checkpoint of kd_d2 already: give it as MODEL.WEIGHTS "
            "without conversion; tools/export_student.py takes the student out."
        )
    if any(k.startswith(("backbone.", "stem.", "res2.", "conv1")) for k in state):
        raise CheckpointError(
            "The file holds a plain detector or backbone, not a checkpoint of the authors' LGD: "
            "give it as MODEL.WEIGHTS without conversion."
        )
    raise CheckpointError(
        "The file is no checkpoint of the authors' LGD, which has its bottom-up network under "
        f"'{FOREIGN_NAMES['lgd']}'; here the names are {first_few(state)}."
    )


def _check_teacher(state: State, model_state: State) -> None:
    for ours in ("teacher.label_encoder_.", "heads.InstructiveFeatures."):
        if not any(k.startswith(ours) for k in model_state):
            raise CheckpointError(
                f"The config's model has no '{ours}*' to fill: give a config of LGD "
                "(MODEL.KD.TEACHER.NAME LabelEncoder, MODEL.KD.HEADS [InstructiveFeatures]), or "
                "take the student alone with --student-only."
            )
    for theirs, what in (("teacher.", "teacher"), ("adapter.", "adapter")):
        if not any(k.startswith(theirs) for k in state):
            raise CheckpointError(
                f"The file holds no {what} ('{theirs}*'): the student alone can be converted, "
                "with --student-only."
            )


def _check_copy(state: State, name: str, original: str) -> None:
    if original not in state:
        raise CheckpointError(
            f"'{name}' should repeat '{original}', which the file does not have: it is incomplete."
        )
    if not torch.equal(state[name], state[original]):
        raise CheckpointError(
            f"'{name}' and '{original}' are one weight under two names, and in this file they "
            "differ, so that nobody can say which one was trained."
        )


def _output_norms(state: State, model_state: State) -> dict[str, str]:
    """Their name -> ours of the norms at Swin's outputs: numbered from 0, or as stages from 2.

    In order, and only if there are as many, of equal widths; else they keep their numbers, and
    the comparison with the model will tell.
    """
    theirs = _numbered(state, "student.raw_backbone.norm")
    ours = _numbered(model_state, RENAMED["student.raw_backbone."] + "norm")
    if [state[x + ".weight"].shape for x in theirs] != [
        model_state[x + ".weight"].shape for x in ours
    ]:
        return {}
    return {
        f"{x}.{kind}": f"{y}.{kind}"
        for x, y in zip(theirs, ours, strict=True)
        for kind in ("weight", "bias")
    }


def _numbered(state: State, beginning: str) -> list[str]:
    numbers = (re.fullmatch(rf"{re.escape(beginning)}(\d+)\.weight", k) for k in state)
    return [f"{beginning}{n}" for n in sorted(int(m[1]) for m in numbers if m)]


def _check_fit(converted: State, model_state: State) -> None:
    problem = misfit(converted, model_state)
    if not problem:
        return
    # What has too few dimensions has no settings to be read off.
    readable = all(
        v.dim() == model_state[k].dim() for k, v in converted.items() if k in model_state
    )
    settings = differing_settings(_settings(converted), _settings(model_state)) if readable else ""
    if settings:
        raise CheckpointError(
            f"The file was trained with other settings than the config has: {settings}; give the "
            "config it was trained with, or override these with KEY VALUE."
        )
    raise CheckpointError(f"The file does not fit the model of this config: {problem}.")


def _settings(state: State) -> dict[str, Any]:
    student = detector_settings(student_state(state))
    return student | _teacher_settings(state, student)


def _teacher_settings(state: State, student: Mapping[str, Any]) -> dict[str, Any]:
    """What the label encoder's names and width say."""
    names = [k for k in state if k.startswith("teacher.label_encoder_.")]
    if not names:
        return {}
    pointnet = "teacher.label_encoder_.stn_desc.conv1.weight" in state
    settings: dict[str, Any] = {"MODEL.KD.LGD.ENCODER": "PointNet" if pointnet else "MLP"}
    first = state.get(f"teacher.label_encoder_.{'conv1' if pointnet else 'fc1'}.weight")
    classes = next((v for k, v in student.items() if k.endswith("NUM_CLASSES")), None)
    if first is None or classes is None:
        return settings
    width = first.shape[1]
    for maps in (False, True):
        for label_format in LABEL_FORMATS:
            if width == descriptor_width(classes, label_format, maps):
                return settings | {
                    "MODEL.KD.LGD.LABEL_FORMAT": label_format,
                    "MODEL.KD.LGD.LOAD_LABELMAP": maps,
                }
    return settings | {"numbers in a label's descriptor": width}


def _check_constants(state: State, constants: State) -> None:
    for name, value in state.items():
        if not CONSTANTS.fullmatch(name):
            continue
        bottom_up = "student.raw_backbone."
        own = constants.get(name.replace(bottom_up, RENAMED[bottom_up]))
        setting = next(v for k, v in _SETTING.items() if k in name)
        if own is None:
            raise CheckpointError(
                f"The file has '{name}' and the config's model has no such thing: {setting} must "
                "be those of the training."
            )
        own = own.to(value)
        if own.shape != value.shape or not torch.allclose(own, value, rtol=1e-4, atol=1e-4):
            raise CheckpointError(
                f"The file was trained with '{name}' {_values(value)} and the config makes it "
                f"{_values(own)}: set {setting} as in the training."
            )


def _values(x: Tensor) -> str:
    """The first numbers of a tensor, and its shape if there are more."""
    numbers = ", ".join(f"{v:.6g}" for v in x.flatten()[:4].tolist())
    return f"({numbers})" if x.numel() <= 4 else f"({numbers}, ...) of shape {tuple(x.shape)}"
