"""Which frozen teacher a run has: written into its checkpoints, compared when it is resumed."""

from typing import Any

from kd_d2.modeling.teachers import FrozenTeacher

__all__ = ["TeacherIdentity"]

_NONE = object()  # of a key that a config does not set


class TeacherIdentity:
    """What the checkpointer keeps of a frozen teacher: its config, and a hash of its weights."""

    def __init__(self, teacher: FrozenTeacher):
        self._identity = teacher.identity()

    def state_dict(self) -> dict[str, Any]:
        return dict(self._identity)

    def check_state_dict(self, state: dict[str, Any]) -> None:
        """
        Raises:
            ValueError: the checkpoint was written with another teacher.
        """
        before, now = state["config"], self._identity["config"]
        keys = [k for k in sorted({*before, *now}) if before.get(k, _NONE) != now.get(k, _NONE)]
        different = [f"{', '.join(keys)} of its config"] if keys else []
        if state["weights"] != self._identity["weights"]:
            different.append("its weights")
        if different:
            raise ValueError(
                "The checkpoint was written with another teacher: different from MODEL.KD.TEACHER "
                f"are {' and '.join(different)}; resume with the teacher that the run began with, "
                "or choose another OUTPUT_DIR."
            )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load: the teacher comes from its own file."""
