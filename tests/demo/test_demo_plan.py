from pathlib import Path

from demo_parts.plan import Configs, plan_jobs

from kd_d2.engine import load_config


def finished(job):
    return load_config(job.config, [text for pair in job.overrides.items() for text in pair])


def test_the_three_runs_differ_in_the_distillation_alone():
    jobs = {job.name: finished(job) for job in plan_jobs(Configs(), Path("out"))}
    plain, lgd, control = jobs["plain"], jobs["lgd"], jobs["control"]
    for other in (lgd, control):
        assert other.SEED == plain.SEED >= 0
        assert other.DATASETS == plain.DATASETS
        assert other.INPUT == plain.INPUT
        assert other.SOLVER == plain.SOLVER
        assert other.MODEL.KD.STUDENT == plain.MODEL.META_ARCHITECTURE
        assert other.MODEL.BACKBONE == plain.MODEL.BACKBONE
        assert other.MODEL.RESNETS == plain.MODEL.RESNETS
        assert other.MODEL.RETINANET == plain.MODEL.RETINANET
        assert other.MODEL.FPN == plain.MODEL.FPN
    assert lgd.MODEL.KD.LGD.LAMBDA > 0 == control.MODEL.KD.LGD.LAMBDA
    assert lgd.MODEL.KD.EVAL_TEACHER


def test_every_run_has_a_folder_of_its_own_and_the_same_length():
    jobs = plan_jobs(Configs(), Path("out"), iterations=77)
    assert [job.output for job in jobs] == [Path("out") / n for n in ("lgd", "plain", "control")]
    assert {job.iterations for job in jobs} == {finished(j).SOLVER.MAX_ITER for j in jobs} == {77}


def test_quick_is_quick_unless_told_otherwise():
    assert all(
        finished(job).SOLVER.MAX_ITER < 10 for job in plan_jobs(Configs(), Path("o"), quick=True)
    )
    assert finished(plan_jobs(Configs(), Path("o"), 12, quick=True)[0]).SOLVER.MAX_ITER == 12
