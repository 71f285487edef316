"""Images of every kind: what the model gets, and what is said of those that cannot be read."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from generate_cases import bad_files, write_image
from PIL import Image
from tiny_models import tiny_cfg

from kd_d2.projects.pseudo_label.reading import ImageReader
from kd_d2.projects.pseudo_label.run_folder import ImageRecord


def reader(image_format="BGR", size=(64, 128), **kwargs):
    cfg = tiny_cfg()
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = size
    cfg.INPUT.FORMAT = image_format
    return ImageReader(cfg, **kwargs)


def record(path):
    return ImageRecord(str(path), path.name, 1, "test")


def as_it_is(path, image_format="RGB", **kwargs):
    """(C, H, W), not resized."""
    x = reader(image_format, (0, 0), **kwargs)(record(path))
    return x["image"].numpy()


@pytest.mark.parametrize("image_format", ["BGR", "RGB", "L"])
@pytest.mark.parametrize("orientation", [None, 3, 6, 8])
def test_the_input_is_that_of_detectron2s_mapper(tmp_path, image_format, orientation):
    exif = Image.Exif()
    if orientation:
        exif[274] = orientation
    path = tmp_path / "a.jpg"
    write_image(path, 80, 200, exif=exif)
    cfg = tiny_cfg()
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, cfg.INPUT.FORMAT = 64, 128, image_format
    expected = DatasetMapper(cfg, is_train=False)({"file_name": str(path)})
    found = ImageReader(cfg)(record(path))
    assert found.keys() == {"image", "height", "width"}
    assert torch.equal(found["image"], expected["image"])
    assert found["image"].is_contiguous() and found["image"].dtype == torch.uint8
    size = (200, 80) if orientation in (6, 8) else (80, 200)
    assert (found["height"], found["width"]) == (expected["height"], expected["width"]) == size
    assert max(found["image"].shape[1:]) == 128


def test_an_image_that_exif_turns(tmp_path):
    pixels = write_image(tmp_path / "a.png", 16, 24)
    for orientation, turned in (
        (6, np.rot90(pixels, -1)),
        (8, np.rot90(pixels)),
        (2, pixels[:, ::-1]),
    ):
        exif = Image.Exif()
        exif[274] = orientation
        Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
        assert np.array_equal(as_it_is(tmp_path / "a.png"), turned.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *(("1", "png"), ("L", "png"), ("LA", "png"), ("P", "png"), ("RGBA", "png")),
        *(("CMYK", "jpg"), ("YCbCr", "jpg"), ("LAB", "tif")),
    ],
)
def test_other_colours_are_converted(tmp_path, mode, suffix):
    pixels = write_image(tmp_path / "rgb.png", 64, 96)
    Image.fromarray(pixels).convert(mode).save(tmp_path / f"a.{suffix}", quality=95)
    found = as_it_is(tmp_path / f"a.{suffix}")
    with Image.open(tmp_path / f"a.{suffix}") as image:
        assert image.mode == {"YCbCr": "RGB"}.get(mode, mode)
        assert np.array_equal(found, np.asarray(image.convert("RGB")).transpose(2, 0, 1))
    if mode in ("RGBA", "CMYK", "YCbCr"):  # which keep the colours
        assert np.abs(found.transpose(1, 2, 0) - pixels.astype(int)).mean() < 16


def test_a_palette_with_transparent_colours(tmp_path):
    image = Image.fromarray(write_image(tmp_path / "rgb.png")).quantize(16)
    image.save(tmp_path / "a.png", transparency=bytes([0, 128] * 8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert as_it_is(tmp_path / "a.png").shape == (3, 64, 96)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("image_format", ["RGB", "BGR", "L"])
def test_16_bits_are_scaled_and_not_clipped(tmp_path, suffix, image_format):
    values = np.linspace(0, 65535, 64 * 96).reshape(64, 96).astype(np.uint16)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(values).save(path)
    found = as_it_is(path, image_format)
    expected = np.round(values / 257.0).astype(np.uint8)
    assert found.shape == (1 if image_format == "L" else 3, 64, 96)
    assert all(np.array_equal(channel, expected) for channel in found)


def test_16_bits_in_big_endian_and_turned(tmp_path):
    values = (np.arange(12).reshape(3, 4) * 5000).astype(np.uint16)
    Image.fromarray(values.astype(">u2")).save(tmp_path / "a.tif")
    assert np.array_equal(as_it_is(tmp_path / "a.tif", "L")[0], np.round(values / 257.0))
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(values).save(tmp_path / "b.png", exif=exif)
    turned = np.rot90(np.round(values / 257.0), -1)
    assert np.array_equal(as_it_is(tmp_path / "b.png", "L")[0], turned)


def test_16_bits_that_old_versions_of_pil_open_as_32(tmp_path):
    values = (np.arange(12).reshape(3, 4) * 5000).astype(np.int32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert np.array_equal(as_it_is(tmp_path / "a.tif", "L")[0], np.round(values / 257.0))


def test_files_that_cannot_be_read(tmp_path):
    read, limit = reader(), Image.MAX_IMAGE_PIXELS
    for name, reason in bad_files(tmp_path / "bad").items():
        found = read(record(tmp_path / "bad" / name))
        assert found.keys() == {"error"}, name
        assert found["error"] and reason in found["error"], name
        assert str(tmp_path) not in found["error"]
        assert len(found["error"].splitlines()) == 1
    assert limit == Image.MAX_IMAGE_PIXELS


def test_the_limit_is_ours_and_not_pils(tmp_path, monkeypatch):
    write_image(tmp_path / "a.png", 64, 96)
    assert "error" in reader(max_pixels=64 * 96 - 1)(record(tmp_path / "a.png"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # it would raise from 200 on
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "image" in reader(max_pixels=64 * 96)(record(tmp_path / "a.png"))


def test_an_image_that_is_too_thin_to_be_resized(tmp_path):
    write_image(tmp_path / "line.png", 1, 4000)
    assert "error" in reader()(record(tmp_path / "line.png"))


def test_one_pixel(tmp_path):
    write_image(tmp_path / "a.png", 1, 1)
    x = reader()(record(tmp_path / "a.png"))
    assert x["image"].shape == (3, 64, 64) and (x["height"], x["width"]) == (1, 1)


def test_a_reader_can_go_to_another_process(tmp_path):
    write_image(tmp_path / "a.png")
    sent = pickle.loads(pickle.dumps(reader()))
    assert torch.equal(
        sent(record(tmp_path / "a.png"))["image"], reader()(record(tmp_path / "a.png"))["image"]
    )
