"""The trainer of a distillation run: Detectron2's DefaultTrainer with our parts in its slots."""

import logging
import weakref

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, build_detection_test_loader
from detectron2.engine import DefaultTrainer, HookBase, create_ddp_model
from detectron2.engine.train_loop import TrainerBase
from detectron2.utils import comm
from torch import nn

from kd_d2.checkpoint import ClassLists, KDCheckpointer, peer_state
from kd_d2.config.check import check_config
from kd_d2.config.schedule import scale_distillation
from kd_d2.config.student import is_distiller, student_config
from kd_d2.data.mappers import RobustDatasetMapper
from kd_d2.data.requirements import check_datasets, check_num_classes, class_names
from kd_d2.data.strong_augmentation import StrongAugmentation
from kd_d2.data.weighted_labels import WeightedLabelMapper
from kd_d2.modeling.inheritance import inherit
from kd_d2.modeling.label_weights import LabelWeights, weigh_labels
from kd_d2.modeling.phases import phase_length
from kd_d2.modeling.teachers import FrozenTeacher

from . import data_loader, evaluation, lr_schedule, optimizer
from .evaluation_models import unwrap_model
from .export import export_peer, export_student
from .loss_state import LossNormalizers
from .phases_hook import FreezeBackbonePhase
from .seeding import StepSeed
from .teacher_check import check_teacher
from .teacher_identity import TeacherIdentity
from .train_loop import TrainLoop, amp_dtype
from .vis_hook import DistillationPictures

__all__ = ["DistillationTrainer", "ExportStudent"]

logger = logging.getLogger(__name__)


class ExportStudent(HookBase):
    """Writes the student when training has reached its end, and its peer (main process only)."""

    def __init__(self, cfg: CfgNode):
        self.cfg = cfg

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter and comm.is_main_process():
            state = unwrap_model(self.trainer.model).state_dict()
            export_student(state, self.cfg, self.cfg.OUTPUT_DIR)
            if peer_state(state):
                export_peer(state, self.cfg, self.cfg.OUTPUT_DIR)


class DistillationTrainer(DefaultTrainer):
    """Trains a distiller, or a plain detector from the same kind of config.

    What differs from Detectron2's: the config and the data are checked before anything is built; a
    trainable teacher has a solver of its own; checkpoints are atomic, and resuming continues data
    and random numbers where they were; DDP works on CPUs; the student is exported at the end.

    With SEED >= 0 a resumed run on one build and machine gives the weights of an uninterrupted one,
    bit by bit on a CPU but for kernels that are compiled while they run: fvcore's scripted focal
    loss rounds differently in the first steps of each process. GPU kernels that add atomically
    (some backward passes of torch and torchvision) round in a different order each time.
    """

    def __init__(self, cfg: CfgNode):
        """
        Raises:
            ConfigError, ValueError, FileNotFoundError: something that the run needs is wrong or
                missing; the message says what.
        """
        # DefaultTrainer's own constructor has no slot for the loop, the checkpointer and DDP
        TrainerBase.__init__(self)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        check_config(cfg)
        check_datasets(cfg)
        student = student_config(cfg).MODEL.META_ARCHITECTURE
        check_num_classes(cfg, student)
        loader = self.build_train_loader(cfg)
        check_num_classes(cfg, student)  # some data sets tell their classes when they are read
        model = self.build_model(cfg)
        weigh_labels(getattr(model, "student", model), cfg)
        # Before the model is wrapped and before any phase freezes a parameter
        optimizer = self.build_optimizer(cfg, model)
        self._trainer = TrainLoop(self.wrap_model(model), loader, optimizer, amp_dtype(cfg))
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        checkpointables = {"trainer": weakref.proxy(self)}
        teacher = getattr(model, "teacher", None)
        if isinstance(teacher, FrozenTeacher):
            check_teacher(teacher, loader, cfg.MODEL.KD.CHECK_TEACHER)
            checkpointables["teacher"] = TeacherIdentity(teacher)
        self.checkpointer = KDCheckpointer(model, cfg.OUTPUT_DIR, **checkpointables)
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from the last whole checkpoint in OUTPUT_DIR, else start from MODEL.WEIGHTS.

        A module with a method ``start_run()`` has states that belong to one run, such as counts
        since its start. It is called where a run begins, after the weights are read. A trainable
        teacher with ``load_initial_weights(classes)``, the names of the data's classes, then reads
        its own, unless MODEL.WEIGHTS has them.
        """
        classes = class_names(self.cfg.DATASETS.TRAIN[0]) or []
        lists = ClassLists(self.cfg.MODEL.WEIGHTS_CLASSES, classes)
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume, classes=lists)
        file = self.checkpointer.resumed_from
        if file is not None:
            self.start_iter = self.iter + 1
            logger.info(
                "Resumed from %s: continuing at iteration %d of %d.",
                file,
                self.start_iter,
                self.max_iter,
            )
            if self.start_iter >= self.max_iter:
                logger.warning(
                    "Nothing is left to train: SOLVER.MAX_ITER is %d, and the checkpoint has seen "
                    "%d iterations.",
                    self.max_iter,
                    self.start_iter,
                )
            order = getattr(self.data_loader, "batch_sampler", None)
            if isinstance(order, data_loader.BatchOrder):
                order.start = self.start_iter
            return
        model = unwrap_model(self._trainer.model)
        for module in model.modules():
            if hasattr(module, "start_run"):
                module.start_run()
        peer = getattr(model, "teacher", None)
        filled, _ = self.checkpointer.loaded_parts.get("teacher", (0, 0))
        if hasattr(peer, "load_initial_weights") and not filled:
            peer.load_initial_weights(classes)
        if self.cfg.MODEL.KD.INHERIT:
            self._inherit()
        if not resume and self.checkpointer.earlier_checkpoints():
            logger.warning(
                "'%s' has checkpoints of an earlier run, which this run will replace as it goes; "
                "stop it and pass --resume to continue that run, or choose another OUTPUT_DIR.",
                self.cfg.OUTPUT_DIR,
            )
        elif resume:
            logger.info(
                "Nothing to resume in %s: starting from %s.",
                self.cfg.OUTPUT_DIR,
                self.cfg.MODEL.WEIGHTS or "random weights (MODEL.WEIGHTS is empty)",
            )

    def _inherit(self) -> None:
        """Gives the student its teacher's parts, over whatever MODEL.WEIGHTS had for them."""
        model = unwrap_model(self._trainer.model)
        if is_distiller(self.cfg) and self.cfg.MODEL.KD.ENABLED:
            inherit(model.student, model.teacher.detector, self.cfg.MODEL.KD.INHERIT)

    def check_state_dict(self, state_dict: dict) -> None:
        """What the checkpointer asks before it loads anything; see ``TrainLoop``."""
        self._trainer.check_state_dict(state_dict["_trainer"])

    def build_hooks(self) -> list[HookBase]:
        """Detectron2's hooks; before them the phases and seeds, after checkpoints the export."""
        cfg = self.cfg
        first: list[HookBase] = []
        frozen = phase_length(cfg.MODEL.KD.FREEZE_BACKBONE, self.max_iter)
        if frozen and is_distiller(cfg) and cfg.MODEL.KD.ENABLED:
            first.append(FreezeBackbonePhase(frozen))
        if cfg.SEED >= 0:
            first.append(StepSeed(cfg.SEED))
        first.append(LossNormalizers())
        hooks = first + super().build_hooks()
        is_eval = [type(hook).__name__ == "EvalHook" for hook in hooks]
        # Before the last evaluation, so that the product exists whatever happens there
        hooks.insert(is_eval.index(True), ExportStudent(cfg))
        if cfg.VIS_PERIOD > 0 and is_distiller(cfg) and cfg.MODEL.KD.ENABLED:
            hooks.append(DistillationPictures(cfg))
        return hooks

    @staticmethod
    def wrap_model(model: nn.Module) -> nn.Module:
        """Wrap a model in DDP if there are several processes, on GPUs or on CPUs."""
        on_gpu = next(model.parameters()).device.type == "cuda"
        return create_ddp_model(
            model, broadcast_buffers=False, **({} if on_gpu else {"device_ids": None})
        )

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module):
        return optimizer.build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer):
        return lr_schedule.build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, mapper=None):
        if mapper is None:
            weighs = LabelWeights.from_config(cfg) is not None
            kind = WeightedLabelMapper if weighs else DatasetMapper
            settings = kind.from_config(cfg, is_train=True)
            if cfg.INPUT.STRONG_AUGMENTATION:
                settings["augmentations"].append(StrongAugmentation(cfg.INPUT.FORMAT))
            mapper = kind(**settings)
        mapper = RobustDatasetMapper(mapper, on_error=cfg.DATALOADER.ON_BAD_IMAGE)
        return data_loader.build_train_loader(cfg, mapper)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str, mapper=None):
        mapper = mapper or DatasetMapper(cfg, is_train=False)
        return build_detection_test_loader(cfg, dataset_name, mapper=RobustDatasetMapper(mapper))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str):
        return evaluation.build_evaluator(cfg, dataset_name)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators=None) -> dict:
        """Evaluate the student and, with MODEL.KD.EVAL_TEACHER, the teacher.

        Returns:
            As ``DefaultTrainer.test``; the teacher's scores are under ``<task>_teacher``.
        """
        model = unwrap_model(model)
        results = super().test(cfg, model, evaluators)
        if evaluation.evaluates_teacher(cfg, model):
            for name in cfg.DATASETS.TEST:
                scores = evaluation.evaluate_teacher(cls, cfg, model, name)
                (results if len(cfg.DATASETS.TEST) == 1 else results[name]).update(scores)
        return results

    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
        """Scale a config to another number of processes as Detectron2 does, ours included.

        Does nothing unless SOLVER.REFERENCE_WORLD_SIZE is set and differs from ``num_workers``.
        """
        reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
        cfg = DefaultTrainer.auto_scale_workers(cfg, num_workers)
        if reference in (0, num_workers):
            return cfg
        scale = num_workers / reference
        cfg = cfg.clone()
        cfg.defrost()
        teacher = cfg.SOLVER.TEACHER
        if teacher.BASE_LR is not None:
            teacher.BASE_LR *= scale
        if teacher.WARMUP_ITERS is not None:
            teacher.WARMUP_ITERS = round(teacher.WARMUP_ITERS / scale)
        if teacher.STEPS is not None:
            teacher.STEPS = [round(step / scale) for step in teacher.STEPS]
        scale_distillation(cfg, scale)
        cfg.freeze()
        return cfg
