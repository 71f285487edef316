"""Images of test sets are not labelled: they are known by their contents and by what they show."""

from pathlib import Path

import numpy as np
import pytest
from generate_cases import write_image
from PIL import Image, ImageOps

from kd_d2.projects.pseudo_label import leaks
from kd_d2.projects.pseudo_label.leaks import check_no_leak
from kd_d2.projects.pseudo_label.sources import SourceError, from_folder


def fill(folder, *names):
    for seed, name in enumerate(names):
        write_image(folder / name, seed=seed)
    return folder


@pytest.fixture
def test_set(tmp_path, register):
    fill(tmp_path / "val", "1.png", "2.png", "3.png")
    records = [{"file_name": str(tmp_path / "val" / f"{i}.png"), "image_id": i} for i in (1, 2, 3)]
    return register("pl_val", records)


def test_leaks_are_found_under_any_name(tmp_path, test_set):
    content = (tmp_path / "val" / "2.png").read_bytes()
    fill(tmp_path / "train", "first.png")
    write_image(tmp_path / "train" / "first.png", seed=9)
    check_no_leak(from_folder(tmp_path / "train")[1], [test_set])
    (tmp_path / "train" / "other.png").write_bytes(content)
    with pytest.raises(SourceError, match=r"1 of the 2 images .* 'pl_val' \(other.png\): leave"):
        check_no_leak(from_folder(tmp_path / "train")[1], [test_set])
    with pytest.raises(SourceError, match="3 of the 3 images"):
        check_no_leak(from_folder(tmp_path / "val")[1], [test_set])
    check_no_leak(from_folder(tmp_path / "val")[1], [])


def test_only_files_of_equal_size_are_read(tmp_path, test_set, monkeypatch):
    size = (tmp_path / "val" / "1.png").stat().st_size
    others = {(tmp_path / "val" / f"{i}.png").stat().st_size for i in (2, 3)}
    assert size not in others
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "equal.png").write_bytes(b"x" * size)
    (tmp_path / "train" / "longer.png").write_bytes(b"x" * 10 * size)
    (tmp_path / "train" / "twice.png").write_bytes(b"y" * size)
    read, real = [], leaks.file_sha256
    monkeypatch.setattr(leaks, "file_sha256", lambda p: read.append(Path(p).name) or real(p))
    images = from_folder(tmp_path / "train")[1]
    check_no_leak(images, [test_set])
    assert sorted(read) == ["1.png", "equal.png", "twice.png"]
    (tmp_path / "train" / "equal.png").unlink()
    check_no_leak(images, [test_set])  # the reader tells what is missing


def test_a_test_set_that_is_not_there_cannot_be_compared(tmp_path, test_set):
    images = from_folder(fill(tmp_path / "train", "a.png"))[1]
    (tmp_path / "val" / "3.png").unlink()
    with pytest.raises(SourceError, match="3.png of the test set 'pl_val' is not there"):
        check_no_leak(images, [test_set])


SAME = r"1 of the 1 images show what those of the same name in the test set 'pl_val' show \({}\)"


@pytest.mark.parametrize("name", ["2.jpg", "deep/2.JPEG", "2.png", "2.webp", "2.bmp"])
def test_an_image_that_was_saved_again(tmp_path, test_set, name):
    path = tmp_path / "train" / name
    path.parent.mkdir(parents=True)
    image = Image.open(tmp_path / "val" / "2.png")
    image.save(path, **({} if name == "2.bmp" else {"quality": 60, "compress_level": 1}))
    images = from_folder(tmp_path / "train")[1]
    with pytest.raises(SourceError, match=SAME.format(name) + ": leave them out, or rename them"):
        check_no_leak(images, [test_set])
    path.rename(path.with_stem("other"))
    check_no_leak(from_folder(tmp_path / "train")[1], [test_set])  # what nobody can know


def test_equal_names_of_different_pictures(tmp_path, test_set):
    for k in (1, 2, 3):
        write_image(tmp_path / "train" / f"{k}.png", seed=10 + k)
    # the same scene with another object: a sixteenth of each side, half as bright as its contrast
    pixels = np.asarray(Image.open(tmp_path / "val" / "3.png")).copy()
    pixels[8:12, 12:18] ^= 64
    Image.fromarray(pixels).save(tmp_path / "train" / "3.png")
    check_no_leak(from_folder(tmp_path / "train")[1], [test_set])


def test_pictures_of_more_than_8_bits_and_turned_ones(tmp_path, register):
    """Dark ones of 16 bits must not all look black, and turning by EXIF is no difference."""
    rng, names = np.random.default_rng(0), ("deep.png", "turned.jpg")
    deep = rng.integers(0, 300, (2, 32, 48)).astype(np.uint16)
    for folder in ("val", "train"):
        (tmp_path / folder).mkdir()
    Image.fromarray(deep[0]).save(tmp_path / "val" / "deep.png")
    Image.fromarray(deep[1]).save(tmp_path / "train" / "deep.png")
    upright = Image.fromarray(write_image(tmp_path / "val" / "turned.jpg", quality=95))
    records = [{"file_name": str(tmp_path / "val" / x), "image_id": i} for i, x in enumerate(names)]
    test_set = register("pl_val", records)
    check_no_leak(from_folder(tmp_path / "train")[1], [test_set])
    Image.fromarray(deep[0]).save(tmp_path / "train" / "deep.tif")
    (tmp_path / "train" / "deep.png").unlink()
    with pytest.raises(SourceError, match=SAME.format("deep.tif")):
        check_no_leak(from_folder(tmp_path / "train")[1], [test_set])
    (tmp_path / "train" / "deep.tif").unlink()
    exif = Image.Exif()
    exif[0x112] = 6  # to be turned by 90 degrees to the right when shown
    upright.rotate(90, expand=True).save(tmp_path / "train" / "turned.png", exif=exif)
    assert ImageOps.exif_transpose(Image.open(tmp_path / "train" / "turned.png")).size == (96, 64)
    with pytest.raises(SourceError, match=SAME.format("turned.png")):
        check_no_leak(from_folder(tmp_path / "train")[1], [test_set])


def test_names_that_a_list_has_twice_say_nothing(tmp_path, register):
    for name in ("val/a/1.png", "val/b/2.png", "train/1.bmp", "train/x/2.bmp", "train/y/2.bmp"):
        write_image(tmp_path / name, seed=int(Path(name).stem))
    names = ["a/1.png", "b/2.png"]
    records = [{"file_name": str(tmp_path / "val" / x), "image_id": i} for i, x in enumerate(names)]
    images = from_folder(tmp_path / "train")[1]
    with pytest.raises(SourceError, match=r"1 of the 3 images show what .*\(1.bmp\)"):
        check_no_leak(images, [register("pl_val", records)])
    write_image(tmp_path / "val" / "c" / "1.png")
    twice = [*records, {"file_name": str(tmp_path / "val/c/1.png"), "image_id": 2}]
    check_no_leak(images, [register("pl_val_twice", twice)])


def test_images_that_cannot_be_read_are_left_to_the_reader(tmp_path, test_set):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "1.jpg").write_text("no image")
    Image.new("RGB", (96, 64), "white").save(tmp_path / "train" / "2.jpg")
    images = from_folder(tmp_path / "train")[1]
    Image.new("RGB", (96, 64), "white").save(tmp_path / "val" / "2.png")  # like no other
    check_no_leak(images, [test_set])
