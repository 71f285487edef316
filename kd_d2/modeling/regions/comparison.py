"""Which regions a student and its teacher compare, and when either looks at them."""

from collections.abc import Set
from typing import TYPE_CHECKING

from detectron2.structures import Instances

from kd_d2.modeling.regions.choosing import RegionSettings, jittered_objects
from kd_d2.modeling.regions.readers import RegionReader
from kd_d2.modeling.regions.seen import Regions
from kd_d2.modeling.views import DetectorView, ViewRequest

if TYPE_CHECKING:
    from kd_d2.modeling.stages import DetectorStages
    from kd_d2.modeling.teachers import FrozenTeacher


class RegionComparison:
    """Gives both views of a batch their ``regions``: the same boxes, seen by either side.

    Whoever chooses the regions has looked at them in its run already, where it is a student, and
    nothing is run twice; the other side reads them afterwards from its features.

    Attributes:
        student_request, teacher_request: what the runs of both must leave behind.
    """

    def __init__(
        self,
        student: "DetectorStages",
        teacher: "FrozenTeacher",
        settings: RegionSettings,
        of_student: Set[str],
        of_teacher: Set[str],
    ):
        """
        Args:
            of_student, of_teacher: what the heads ask for, in the words of ``readers.py``.

        Raises:
            ValueError: a detector has no regions.
        """
        self.settings = settings
        self.teacher = teacher
        self.student: RegionReader = student.open_regions(settings, "student")
        teacher.stages.open_regions(settings, "teacher")
        self.of_student, self.of_teacher = of_student, of_teacher
        self.student_request: ViewRequest = self.student.request(of_student)
        self.teacher_request: ViewRequest = teacher.stages.regions.request(of_teacher)

    def compare(self, student: DetectorView, teacher: DetectorView, gt: list[Instances]) -> None:
        """Sets ``regions`` of both views."""
        if self.settings.source == "student":
            student.regions = self.student.own(student, gt, self.of_student)
            regions = student.regions.regions
        else:
            regions = self._given(teacher, gt)
            student.regions = self.student.read(student, regions, self.of_student)
        teacher.regions = self.teacher.read_regions(teacher, regions, self.of_teacher)

    def _given(self, teacher: DetectorView, gt: list[Instances]) -> Regions:
        if self.settings.source == "teacher":
            return self.teacher.stages.regions.choose(teacher, gt)
        return jittered_objects(gt, teacher.images.image_sizes, self.settings)
