"""Config from file and overrides, and mistakes in one sentence."""

import logging

import pytest
import torch
from detectron2 import model_zoo

from kd_d2.config.check import check_config
from kd_d2.config.rules import ConfigError
from kd_d2.engine import choose_device, load_config, user_errors
from kd_d2.registry import UnknownNameError

ZOO = "COCO-Detection/retinanet_R_101_FPN_3x.yaml"


@pytest.fixture
def config(tmp_path):
    def write(text, name="run.yaml"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_file_and_overrides(config):
    path = config("MODEL:\n  META_ARCHITECTURE: RetinaNet\nVERSION: 2\n")
    cfg = load_config(path, ["SOLVER.BASE_LR", "1e-3", "MODEL.KD.INHERIT", "['neck']"])
    assert cfg.MODEL.META_ARCHITECTURE == "RetinaNet"
    assert cfg.SOLVER.BASE_LR == 1e-3 and cfg.MODEL.KD.INHERIT == ["neck"]
    assert not cfg.is_frozen()


def test_heads_and_a_teacher_are_all_that_a_detector_needs(config):
    path = model_zoo.get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.yaml")
    with pytest.raises(ConfigError, match="MODEL.KD.TEACHER.CONFIG_FILE is empty"):
        check_config(load_config(path, ["MODEL.KD.HEADS", "['PKD']"]))
    cfg = load_config(path, ["MODEL.KD.HEADS", "['PKD']", "MODEL.KD.TEACHER.CONFIG_FILE", ZOO])
    check_config(cfg)
    assert cfg.MODEL.META_ARCHITECTURE == "FrozenTeacherDistiller"
    assert (cfg.MODEL.KD.STUDENT, cfg.MODEL.KD.TEACHER.NAME) == ("RetinaNet", "Frozen")
    lgd = ["MODEL.KD.HEADS", "['InstructiveFeatures']", "MODEL.KD.TEACHER.NAME", "LabelEncoder"]
    assert load_config(path, lgd).MODEL.META_ARCHITECTURE == "LabelGuidedDistiller"


def test_a_meta_architecture_that_was_set_back_stays(config):
    kd = "{STUDENT: RetinaNet, HEADS: [PKD], TEACHER: {NAME: Frozen}}"
    path = config(f"MODEL:\n  META_ARCHITECTURE: FrozenTeacherDistiller\n  KD: {kd}\nVERSION: 2\n")
    cfg = load_config(path, ["MODEL.META_ARCHITECTURE", "RetinaNet"])
    assert cfg.MODEL.META_ARCHITECTURE == "RetinaNet"


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["SOLVER.BASE_LEARNING", "1"], "SOLVER.BASE_LEARNING: did you mean SOLVER.BASE_LR"),
        (["SOLVER.NUM_CLASSES", "1"], r"MODEL\.\w+\.NUM_CLASSES"),
        (["SOLVER.BASE_LR"], "SOLVER.BASE_LR has no value"),
        (["SOLVER.BASE_LR=1"], "with a space"),
        (["--resume", "x"], "--resume must come before"),
        (["SOLVER.MAX_ITER", "many"], "SOLVER.MAX_ITER"),
    ],
)
def test_wrong_overrides(overrides, words):
    with pytest.raises(ValueError, match=words) as error:
        load_config("", overrides)
    assert "\n" not in str(error.value)


def test_wrong_files(config, tmp_path):
    config("VERSION: 2\n")
    with pytest.raises(FileNotFoundError, match="Did you mean '.*run.yaml'"):
        load_config(str(tmp_path / "rn.yaml"))
    with pytest.raises(ValueError, match="did you mean MODEL.KD.STUDENT.*bad.yaml"):
        load_config(config("MODEL: {KD: {STUDNT: RetinaNet}}\nVERSION: 2\n", "bad.yaml"))
    with pytest.raises(ValueError, match="no valid YAML"):
        load_config(config("MODEL: [1\n", "broken.yaml"))


def test_a_config_name_that_breaks_off_is_completed(tmp_path):
    for name in ("fcos_x101.yaml", "fcos_r50_2x_ms.yaml"):
        (tmp_path / name).write_text("")
    with pytest.raises(FileNotFoundError, match="Did you mean '.*fcos_r50_2x_ms.yaml'"):
        load_config(str(tmp_path / "fcos_r50.yaml"))


def test_python_tags_do_not_run(config, tmp_path):
    witness = tmp_path / "witness"
    tag = f"SEED: !!python/object/apply:os.system ['touch {witness}']\nVERSION: 2\n"
    with pytest.raises(ValueError, match="Python tag"):
        load_config(config(tag))
    assert not witness.exists()


@pytest.mark.parametrize("value,expected", [("auto", "auto"), ("30000", 30000), ("0.25", 0.25)])
def test_keys_of_free_type_change_their_type_on_the_command_line(config, value, expected):
    path = config("MODEL: {KD: {LGD: {PRE_NONDISTILL: 0.4}}}\nVERSION: 2\n")
    cfg = load_config(path, ["MODEL.KD.LGD.PRE_NONDISTILL", value])
    assert expected == cfg.MODEL.KD.LGD.PRE_NONDISTILL


def test_weights_that_moved_with_their_config_are_found(config, tmp_path):
    path = config("MODEL: {WEIGHTS: /long/gone/model_student.pth}\nVERSION: 2\n", "student.yaml")
    assert load_config(path).MODEL.WEIGHTS == "/long/gone/model_student.pth"
    (tmp_path / "model_student.pth").touch()
    assert str(tmp_path / "model_student.pth") == load_config(path).MODEL.WEIGHTS


def test_weights_of_the_command_line_are_where_it_says(config, tmp_path):
    path = config("MODEL: {WEIGHTS: /long/gone/model_student.pth}\nVERSION: 2\n", "student.yaml")
    (tmp_path / "model_student.pth").touch()
    for wrong in ("/wrong/model_student.pth", "/long/gone/model_student.pth"):
        assert wrong == load_config(path, ["MODEL.WEIGHTS", wrong]).MODEL.WEIGHTS


def test_whole_numbers_are_floats_where_floats_are_due(config):
    path = config("MODEL: {KD: {LGD: {LAMBDA: 2}, PKD: {WEIGHT: 3}}}\nVERSION: 2\n")
    kd = load_config(path, ["MODEL.KD.LGD.LAMBDA", "0"]).MODEL.KD
    assert type(kd.LGD.LAMBDA) is float and (kd.LGD.LAMBDA, kd.PKD.WEIGHT) == (0, 3)


def test_detectron2s_own_configs_serve(config):
    path = model_zoo.get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.yaml")
    sizes = load_config(config(f"_BASE_: {path}\nMODEL: {{META_ARCHITECTURE: RetinaNet}}"))
    assert sizes.MODEL.ANCHOR_GENERATOR.SIZES[0] == [32, 32 * 2 ** (1 / 3), 32 * 2 ** (2 / 3)]
    assert load_config(path).MODEL.META_ARCHITECTURE == "RetinaNet"


def test_device(tiny_cfg, monkeypatch, caplog):
    caplog.set_level("INFO", "kd_d2")
    for available, gpus, expected, said in (
        (False, 8, "cpu", "No GPU found"),
        (True, 0, "cpu", "--num-gpus 0"),
        (True, 1, "cuda", ""),
    ):
        cfg = tiny_cfg()
        cfg.MODEL.DEVICE = "cuda"
        caplog.clear()
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        choose_device(cfg, gpus)
        assert expected == cfg.MODEL.DEVICE
        assert said in caplog.text and len(caplog.records) == bool(said)


def test_mistakes_end_with_one_sentence(capsys, monkeypatch):
    monkeypatch.delenv("KD_D2_DEBUG", raising=False)
    for error in (ValueError("wrong"), UnknownNameError("wrong"), NotADirectoryError("wrong")):
        with pytest.raises(SystemExit) as exit_, user_errors():
            raise error
        assert exit_.value.code == 2
        assert capsys.readouterr().err.startswith("Error: wrong")


def test_errors_of_the_system_name_the_file(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit), user_errors():
        (tmp_path / "file" / "below").mkdir()
    assert capsys.readouterr().err.startswith(
        f"Error: '{tmp_path}/file/below': Not a directory. Check the path, or give another."
    )


@pytest.mark.parametrize("debug, shown", [("", False), ("1", True)])
def test_the_loops_traceback_is_shown_for_other_errors_alone(debug, shown, caplog, monkeypatch):
    monkeypatch.setenv("KD_D2_DEBUG", debug)
    loop_logger = logging.getLogger("detectron2.engine.train_loop")
    monkeypatch.setattr(loop_logger, "handlers", [caplog.handler])

    def fail(error):
        with pytest.raises((SystemExit, type(error))), user_errors():
            try:
                raise error
            except Exception:
                loop_logger.exception("Exception during training:")
                raise

    fail(ValueError("a mistake"))
    assert ("a mistake" in caplog.text) == shown
    fail(RuntimeError("a bug"))
    assert "a bug" in caplog.text
    assert not loop_logger.filters


def test_other_errors_and_debugging_keep_their_traceback(monkeypatch):
    with pytest.raises(RuntimeError), user_errors():
        raise RuntimeError
    with pytest.raises(ValueError), user_errors(KeyError):
        raise ValueError
    monkeypatch.setenv("KD_D2_DEBUG", "1")
    with pytest.raises(ValueError), user_errors():
        raise ValueError
