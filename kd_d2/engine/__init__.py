"""Training, evaluation and export."""

from .defaults import choose_device, load_config, user_errors
from .evaluation_models import TeacherInference, unwrap_model
from .export import check_student_state, export_peer, export_student
from .launch import LaunchError, check_batch, launch
from .lr_schedule import build_lr_scheduler
from .optimizer import JointOptimizer, build_optimizer
from .phases_hook import FreezeBackbonePhase
from .train_loop import TrainLoop
from .trainer import DistillationTrainer

__all__ = [
    "DistillationTrainer",
    "FreezeBackbonePhase",
    "JointOptimizer",
    "LaunchError",
    "TeacherInference",
    "TrainLoop",
    "build_lr_scheduler",
    "build_optimizer",
    "check_batch",
    "check_student_state",
    "choose_device",
    "export_peer",
    "export_student",
    "launch",
    "load_config",
    "unwrap_model",
    "user_errors",
]
