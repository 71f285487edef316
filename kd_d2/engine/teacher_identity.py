"""Which frozen teacher a run has: written into its checkpoints, compared when it is resumed."""

from kd_d2.modeling.teachers import FrozenTeacher

__all__ = ["TeacherIdentity"]


class TeacherIdentity:
    """What the checkpointer keeps of a frozen teacher: hashes instead of weights."""

    def __init__(self, teacher: FrozenTeacher):
        self._identity = teacher.identity()

    def state_dict(self) -> dict[str, str]:
        return dict(self._identity)

    def check_state_dict(self, state: dict[str, str]) -> None:
        """
        Raises:
            ValueError: the checkpoint was written with another teacher.
        """
        different = [part for part in self._identity if state.get(part) != self._identity[part]]
        if different:
            raise ValueError(
                f"The checkpoint was written with another teacher: its {' and '.join(different)} "
                "differ from those of MODEL.KD.TEACHER; resume with the teacher that the run began "
                "with, or choose another OUTPUT_DIR."
            )

    def load_state_dict(self, state: dict[str, str]) -> None:
        """Nothing to load: the teacher comes from its own file."""
