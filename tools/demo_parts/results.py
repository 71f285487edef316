"""The numbers of the three runs, and what they say in plain words."""

from dataclasses import dataclass, field

from kd_d2.experiments.metrics import SCORES, Metrics

# Two runs of this size that differ in the seed alone are easily that many AP apart.
CHANCE = 2.0
# Below this AP a detector has learned next to nothing.
_BLIND = 5.0


@dataclass
class Results:
    """Metrics of the three runs."""

    plain: Metrics
    lgd: Metrics
    control: Metrics
    rows: list[tuple[str, dict[str, float | None], float | None]] = field(init=False)

    def __post_init__(self):
        runs = [
            ("plain student", self.plain),
            ("control (LGD, LAMBDA 0)", self.control),
            ("LGD student", self.lgd),
        ]
        self.rows = [(name, m.scores(), m.seconds_per_step()) for name, m in runs]
        teacher = self.lgd.scores("bbox_teacher")
        if teacher["AP"] is not None:
            self.rows.append(("LGD's teacher (reads the labels)", teacher, None))

    def ap(self, run: str) -> float:
        """Final AP of "plain", "control" or "lgd"; 0 if it found nothing that could be measured."""
        return getattr(self, run).scores()["AP"] or 0.0


def table(results: Results) -> list[list[str]]:
    """Cells of the table, header first. A column in which nothing was measured is left out."""
    shown = [s for s in SCORES if any(scores[s] is not None for _, scores, _ in results.rows)]
    shown = shown or ["AP"]
    cells = [["", *shown, "step time", "AP vs plain"]]
    for name, scores, seconds in results.rows:
        numbers = ["-" if scores[s] is None else f"{scores[s]:.1f}" for s in shown]
        time = "-" if seconds is None else f"{1e3 * seconds:.0f} ms"
        difference = (scores["AP"] or 0.0) - results.ap("plain")
        is_plain = name == results.rows[0][0]
        cells.append([name, *numbers, time, "" if is_plain else f"{difference:+.1f}"])
    return cells


def verdict(difference: float) -> str:
    """
    >>> verdict(6.0), verdict(-6.0), verdict(0.5)
    ('a gain', 'a loss', 'no clear difference')
    """
    if abs(difference) < CHANCE:
        return "no clear difference"
    return "a gain" if difference > 0 else "a loss"


def findings(results: Results) -> list[str]:
    """What the numbers say, one sentence or two for each question."""
    plain, control, lgd = (results.ap(run) for run in ("plain", "control", "lgd"))
    sentences = [
        f"LGD reached {lgd:.1f} AP, and the same student trained plainly {plain:.1f} AP with the "
        f"same seed, data and number of iterations: {lgd - plain:+.1f} AP, {verdict(lgd - plain)}.",
        "What the teacher branch on the shared head gives (control minus plain): "
        f"{control - plain:+.1f} AP, {verdict(control - plain)}.",
        "What the feature loss adds to it (LGD minus control): "
        f"{lgd - control:+.1f} AP, {verdict(lgd - control)}.",
    ]
    for finding in (_teacher(results), _overtaking(results), _cost(results), _settled(results)):
        if finding:
            sentences.append(finding)
    sentences.append(
        f"One seed is one seed: runs that differ in nothing else are easily {CHANCE:.0f} AP apart "
        "and often more. benchmarks/shapes_table.py makes the same comparison over several seeds."
    )
    return sentences


def _teacher(results: Results) -> str | None:
    teacher = results.lgd.scores("bbox_teacher")["AP"]
    if teacher is None:
        return None
    text = f"LGD's teacher, which reads the labels of the image, reaches {teacher:.1f} AP; "
    if teacher <= results.ap("lgd"):
        return text + "it is no better than its student, which had little to learn from it."
    return text + "that is a diagnosis, never a result: without labels it does not exist."


def _overtaking(results: Results) -> str | None:
    iterations, teacher = results.lgd.series("loss_cls.tea")
    student = dict(zip(*results.lgd.series("loss_cls"), strict=True))
    behind = [i for i, loss in zip(iterations, teacher, strict=True) if loss >= student.get(i, 0)]
    if not iterations:
        return None
    if behind and behind[-1] == iterations[-1]:
        return (
            "At the end of training the teacher's classification loss is not below the student's: "
            "the teacher has not overtaken its student."
        )
    return (
        "The teacher's classification loss stays below the student's from iteration "
        f"{behind[-1] if behind else iterations[0]} of {results.lgd.iterations_done()} on."
    )


def _cost(results: Results) -> str | None:
    plain, lgd = results.plain.seconds_per_step(), results.lgd.seconds_per_step()
    if not plain or not lgd:
        return None
    longer = round(results.plain.iterations_done() * lgd / plain)
    return (
        f"A training step of LGD takes {lgd / plain:.2f} times as long as a plain one: in the time "
        f"of this LGD run the plain student could have trained for {longer} iterations instead of "
        f"{results.plain.iterations_done()}. At test time both cost the same."
    )


def _settled(results: Results) -> str | None:
    iterations, ap = results.plain.series("bbox/AP")
    earlier = [a for i, a in zip(iterations, ap, strict=True) if i <= 2 / 3 * iterations[-1]]
    if not earlier:
        return None
    if max(ap) < _BLIND:
        return (
            f"The plain student had hardly begun to learn ({ap[-1]:.1f} AP): nothing "
            "can be concluded from so short a schedule."
        )
    gained = ap[-1] - earlier[-1]
    if gained < CHANCE:
        return (
            "The plain student had settled: the last third of its schedule brought "
            f"{gained:+.1f} AP."
        )
    return (
        f"The plain student had not settled: the last third of its schedule still brought "
        f"{gained:+.1f} AP, so a difference here may be faster learning, not a better end."
    )
