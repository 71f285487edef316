"""Names of configs and weights: what they resolve to, and what is said when they do not."""

from pathlib import Path

import pytest

from kd_d2.model_zoo import ZooError, names, resolve_config_file, resolve_weights

ZOO_NAME = "COCO-Detection/retinanet_R_101_FPN_3x.yaml"
ZOO_URL = (
    "https://dl.fbaipublicfiles.com/detectron2/COCO-Detection/retinanet_R_101_FPN_3x/"
    "190397697/model_final_971ab9.pkl"
)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", [ZOO_NAME, ZOO_NAME.removesuffix(".yaml")])
def test_a_zoo_name_is_found_with_and_without_its_ending(name):
    path = resolve_config_file(name)
    assert Path(path).is_file()
    assert path.endswith("detectron2/model_zoo/configs/" + ZOO_NAME)


def test_an_existing_path_comes_first(workplace):
    mine = workplace / ZOO_NAME
    mine.parent.mkdir()
    mine.write_text("MODEL: {}\n")
    assert resolve_config_file(ZOO_NAME) == ZOO_NAME
    assert resolve_weights("", ZOO_NAME) == ""


def test_our_own_configs_are_found_by_name(workplace):
    own = names._own_configs()
    some = next(own.rglob("*.yaml")).relative_to(own).as_posix()
    assert resolve_config_file(some) == str(own / some)
    assert resolve_config_file(some.removesuffix(".yaml")) == str(own / some)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("COCO-Detection/retinanet_R101_FPN_3x.yaml", ZOO_NAME),
        ("coco/retinanet_R_101_FPN_3x", ZOO_NAME),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(workplace, wrong, right):
    with pytest.raises(FileNotFoundError, match=f"{wrong}.*Did you mean.*{right}"):
        resolve_config_file(wrong)


def test_an_empty_name_is_refused():
    with pytest.raises(FileNotFoundError, match="give a path or a model-zoo name"):
        resolve_config_file("")


@pytest.mark.parametrize("config", [ZOO_NAME, ZOO_NAME.removesuffix(".yaml")])
def test_published_weights_belong_to_a_zoo_config(config):
    assert resolve_weights("", config) == ZOO_URL
    assert resolve_weights("", resolve_config_file(config)) == ZOO_URL


def test_no_weights_where_none_were_published():
    assert resolve_weights("") == ""
    assert resolve_weights("", "Base-RetinaNet.yaml") == ""


@pytest.mark.parametrize(
    "address",
    [
        "https://host/model.pth",
        "http://host/a.pkl",
        "detectron2://ImageNetPretrained/MSRA/R-50.pkl",
    ],
)
def test_addresses_pass_through(address):
    assert resolve_weights(address, ZOO_NAME) == address


def test_a_file_must_exist(workplace):
    (workplace / "model.pth").touch()
    assert resolve_weights("model.pth") == "model.pth"
    with pytest.raises(FileNotFoundError, match="no weights at 'absent.pth'.*put the checkpoint"):
        resolve_weights("absent.pth", ZOO_NAME)


def test_a_name_of_weights_is_that_of_their_config():
    name = "kd_d2://coco/faster_rcnn_x101_3x"
    config = resolve_config_file(name)
    assert config.endswith("COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x.yaml")
    assert resolve_weights("", name) == name
    with pytest.raises(ZooError, match="r50 is a backbone, and a detector"):
        resolve_config_file("kd_d2://imagenet/r50")
    with pytest.raises(ZooError, match="no kd_d2://coco/faster_rcnn_x102_3x.*did you mean coco/"):
        resolve_config_file("kd_d2://coco/faster_rcnn_x102_3x")
    with pytest.raises(ZooError, match="convert_checkpoint.py"):
        resolve_weights("", "kd_d2://lgd/fcos_r50")
