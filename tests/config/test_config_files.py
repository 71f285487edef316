"""Config files: bases, numbers, and what is wrong with a file in one sentence."""

import pytest
from detectron2.config import get_cfg

from kd_d2.config.files import fitting, merge_config_file


@pytest.fixture
def read(tmp_path):
    """Writes files by name (without .yaml) and reads the first."""

    def read_(**files):
        for name, text in files.items():
            (tmp_path / f"{name}.yaml").write_text(text)
        cfg = get_cfg()
        merge_config_file(cfg, str(tmp_path / f"{next(iter(files))}.yaml"))
        return cfg

    return read_


def test_later_bases_and_the_file_itself_have_the_last_word(read):
    cfg = read(
        run="_BASE_: [one.yaml, two.yaml]\nSEED: 3\nVERSION: 2",
        one="SEED: 1\nVIS_PERIOD: 1\nSOLVER: {MAX_ITER: 1, IMS_PER_BATCH: 1, NUM_DECAYS: 1}",
        two="_BASE_: three.yaml\nVIS_PERIOD: 2\nSOLVER: {MAX_ITER: 2}",
        three="VIS_PERIOD: 9\nSOLVER: {IMS_PER_BATCH: 9, MAX_ITER: 9}",
    )
    solver = cfg.SOLVER
    assert (cfg.SEED, cfg.VIS_PERIOD, solver.MAX_ITER) == (3, 2, 2)
    assert (solver.IMS_PER_BATCH, solver.NUM_DECAYS) == (9, 1)


def test_one_base_may_serve_twice(read):
    cfg = read(run="_BASE_: [a.yaml, b.yaml]", a="_BASE_: b.yaml\nSEED: 1", b="VIS_PERIOD: 4")
    assert (cfg.SEED, cfg.VIS_PERIOD) == (1, 4)


def test_a_base_by_its_whole_path(read, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "base.yaml").write_text("SEED: 5")
    assert read(run=f"_BASE_: {tmp_path}/elsewhere/base.yaml").SEED == 5


def test_whole_numbers_are_floats_where_floats_are_due(read):
    solver = read(run="SOLVER: {BASE_LR: 1, GAMMA: '0', MAX_ITER: 7, STEPS: [1, 2]}").SOLVER
    assert type(solver.BASE_LR) is type(solver.GAMMA) is float
    assert (solver.BASE_LR, solver.GAMMA, solver.MAX_ITER, solver.STEPS) == (1, 0, 7, (1, 2))


def test_files_of_an_old_version_are_translated(read):
    assert read(run="VERSION: 1\nMODEL: {WEIGHT: old.pkl}").MODEL.WEIGHTS == "old.pkl"
    assert read(run="MODEL: {WEIGHT: old.pkl}").MODEL.WEIGHTS == "old.pkl"
    with pytest.raises(ValueError, match="Unknown config key in '.*run.yaml': .*MODEL.WEIGHTX"):
        read(run="VERSION: 1\nMODEL: {WEIGHTX: old.pkl}")


@pytest.mark.parametrize(
    "text, message",
    [
        ("only text", "run.yaml' is no mapping"),
        ("- 1\n- 2", "run.yaml' is no mapping"),
        ("", "run.yaml' is empty"),
        ("MODEL: 5", "MODEL is 5; it must hold keys .*run.yaml"),
        ("MODEL:\n", "MODEL is None; it must hold keys"),
        ("MODEL: {KD: 3}", "did you mean"),
        ("5: 3", "Unknown config key 5"),
        ("MODEL: {WEIGHTS: {a: 1}}", "MODEL.WEIGHTS is {'a': 1}; it must be text"),
        ("SOLVER: {MAX_ITER: 1e3}", "MAX_ITER is 1000.0; it must be a whole number .*run.yaml"),
        ("SOLVER: {WEIGHT_DECAY_BIAS: 2020-01-01}", "it must be None, a number, text or a list"),
        ("OUTPUT_DIR: 7", "OUTPUT_DIR is 7; it must be text: write '\"7\"'"),
        ("VERSION: 9", "VERSION is 9; this Detectron2 reads up to 2"),
        ("VERSION: text", "VERSION is 'text'"),
        ("_BASE_: run.yaml", "run.yaml', which '.*run.yaml' names as its _BASE_, has itself"),
        ("_BASE_: loop.yaml", "has itself as a base"),
        ("_BASE_: 5", "_BASE_ of '.*run.yaml' is 5"),
        ("_BASE_: [loop.yaml, 5]", "has itself as a base"),
        ("_BASE_: value.yaml\nSOLVER: {MAX_ITER: 1}", "SOLVER is a node in '.*run.yaml' and a"),
        ("_BASE_: broken.yaml", "'.*broken.yaml' is no valid YAML"),
        ("SEED: !!python/object/apply:eval ['exit()']", "run.yaml' has a Python tag.*no arithm"),
        ("_BASE_: tag.yaml", "tag.yaml' has a Python tag"),
    ],
)
def test_malformed_files(text, message, read):
    others = {
        "loop": "_BASE_: run.yaml",
        "value": "SOLVER: 3",
        "broken": "MODEL: [1",
        "tag": "SEED: !!python/name:os.getcwd",
    }
    with pytest.raises(ValueError, match=message) as error:
        read(run=text, **others)
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read(read, tmp_path):
    with pytest.raises(OSError, match="nope.yaml', which '.*run.yaml' names as its _BASE_, cannot"):
        read(run="_BASE_: nope.yaml")
    with pytest.raises(OSError, match="which '.*run.yaml' names as its _BASE_, cannot"):
        read(run="_BASE_: .")
    with pytest.raises(OSError, match="is a folder: give a file, e.g. '.*run.yaml'"):
        merge_config_file(get_cfg(), str(tmp_path))
    (tmp_path / "binary.yaml").write_bytes(b"\x80\x81")
    with pytest.raises(ValueError, match="no valid YAML"):
        merge_config_file(get_cfg(), str(tmp_path / "binary.yaml"))


@pytest.mark.parametrize(
    "value, default, expected",
    [("-1", 0.5, -1.0), (3, 0.5, 3.0), ("(1, 2)", [], [1, 2]), ("None", 0.5, "None")]
    + [('"5"', "", '"5"'), ("a b", "", "a b"), ("0.5", None, "0.5"), (None, 1, None)],
)
def test_values_take_the_type_of_the_default(value, default, expected):
    fitted = fitting("A.KEY", value, default)
    assert type(fitted) is type(expected) and fitted == expected


@pytest.mark.parametrize(
    "value, default",
    [("True", 0.5), (True, 1), (1, True), (1.0, 1), ("x", 0.5), ("{}", None), ("3", [])]
    + [(10**400, 0.5), ("5", "")],
)
def test_values_of_another_type(value, default):
    with pytest.raises(ValueError, match="^A.KEY is .*; it must be "):
        fitting("A.KEY", value, default)


def test_a_literal_that_there_cannot_be():
    with pytest.raises(
        ValueError, match="A.KEY is '{\\[\\]: 1}', which cannot be read: unhashable"
    ):
        fitting("A.KEY", "{[]: 1}", "")
