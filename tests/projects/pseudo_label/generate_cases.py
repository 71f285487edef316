"""Images, tiny teachers and processes for the tests of generating."""

import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tiny_models import DENSE, tiny_cfg, write_untrained

from kd_d2.projects.pseudo_label.generate import GenerateSettings, generate, prepare_run
from kd_d2.projects.pseudo_label.run_folder import RunFolder
from kd_d2.projects.pseudo_label.sources import from_folder

# Forks of a process that has imported all, but not yet computed: OpenMP does not survive a fork
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["kd_d2.projects.pseudo_label.generate"])


def write_image(path: Path, height: int = 64, width: int = 96, seed: int = 0, **save) -> np.ndarray:
    """A picture of coarse random blocks; returns it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    pixels = blocks.repeat(8, 0).repeat(8, 1)[:height, :width]
    Image.fromarray(pixels).save(path, **save)
    return pixels


def bad_files(folder):
    """Writes files that cannot be read; name -> what must be said of each."""
    folder.mkdir(exist_ok=True)
    write_image(folder / "good.jpg", 96, 96)
    content = (folder / "good.jpg").read_bytes()
    write_image(folder / "good.png", 96, 96)
    png = (folder / "good.png").read_bytes()
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("<html>404</html>")
    (folder / "truncated.jpg").write_bytes(content[: len(content) // 2])
    (folder / "truncated.png").write_bytes(png[: len(png) // 2])
    (folder / "header.jpg").write_bytes(content[:10])
    (folder / "damaged.png").write_bytes(png[:16] + bytes(8) + png[24:])
    (folder / "folder.jpg").mkdir()
    Image.fromarray(np.zeros((4, 4), np.float32)).save(folder / "float.tif")
    Image.fromarray(np.full((4, 4), 70000, np.int32)).save(folder / "int.tif")
    Image.new("1", (20000, 10000)).save(folder / "huge.png")
    return {
        "empty.jpg": "the file is empty",
        "text.jpg": "no image of a format that PIL knows",
        "truncated.jpg": "truncated",
        "truncated.png": "truncated",
        "header.jpg": "Truncated File Read",
        "damaged.png": "its beginning is damaged",
        "folder.jpg": "the file cannot be opened: Is a directory",
        "absent.jpg": "the file cannot be opened: No such file",
        "float.tif": "floating-point numbers",
        "int.tif": "32 bits",
        "huge.png": "20000 x 10000 pixels are more than 50000000",
    }


@dataclass
class Case:
    """A folder with images and teachers; runs go into folders beside them."""

    folder: Path
    teachers: list[tuple]

    @classmethod
    def make(cls, folder: Path, images: int = 10, archs: tuple[str, ...] = ("RetinaNet",)):
        for i in range(images):
            write_image(folder / "images" / f"{i:03d}.png", 64 + 8 * (i % 3), 96, i)
        (folder / "teachers").mkdir()
        return cls(folder, [(arch, *write_teacher(folder / "teachers", arch)) for arch in archs])

    def prepare(
        self, name: str = "run", new_run: bool = False, retry_failed: bool = False, **settings
    ):
        """Returns the run and the settings."""
        settings = GenerateSettings(**{**QUICK, **settings})
        root, images = from_folder(self.folder / "images")
        output = self.folder / name
        planned = (output, images, root, self.teachers, settings, new_run, retry_failed)
        return prepare_run(*planned), settings

    def begin(self, name: str = "run", **settings) -> RunFolder:
        """A run of which something says that its first shard is done."""
        run, _ = self.prepare(name, **settings)
        folder = run.raw(run.teachers[0])
        folder.mkdir(parents=True)
        (folder / f"{run.shards[0].name}.done").touch()
        return run

    def generate(self, name: str = "run", **settings):
        """Returns the run and the report."""
        run, settings = self.prepare(name, **settings)
        return run, generate(run, settings)

    def start(self, name: str = "run", kill_at: int = 0, pause: float = 0.0, **settings):
        """Generates in another process, which says what it says in ``<name>.log``.

        Args:
            kill_at: the number of the file before whose appearance it dies.
            pause: seconds that it waits before each file appears, so that others can step in.
        """
        process = _CONTEXT.Process(target=_work, args=(self, name, kill_at, pause, settings))
        process.start()
        return process


QUICK = {
    "topk": 20,
    "shard_size": 3,
    "num_workers": 0,
    "device": "cpu",
    "heartbeat": 0.5,
    "stale": 600.0,
}


def write_teacher(folder: Path, arch: str) -> tuple[str, str]:
    """Config and weights of a tiny untrained detector that finds something; returns both paths."""
    torch.manual_seed(1)
    cfg = tiny_cfg(arch, fpn_channels=64)
    if arch in DENSE:
        cfg.MODEL[arch.upper()].PRIOR_PROB = 0.3
    cfg.INPUT.MIN_SIZE_TEST = 64
    cfg.INPUT.MAX_SIZE_TEST = 128
    return write_untrained(cfg, folder, arch)


def _work(case: Case, name: str, kill_at: int, pause: float, settings: dict) -> None:
    multiprocessing.set_start_method("fork", force=True)  # of the processes that read
    log = os.open(case.folder / f"{name}.log", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(log, 2)
    os.setsid()  # as the job of a terminal or of a scheduler
    replace, count = os.replace, iter(range(1, 10**6))

    def replace_or_die(source, target):
        if next(count) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(pause)
        replace(source, target)

    os.replace = replace_or_die
    case.generate(name, **settings)


def raw_bytes(run: RunFolder) -> dict[str, bytes]:
    """Shards and what says that they are done, by their names."""
    paths = sorted((run.folder / "raw").glob("*/*"))
    return {
        f"{path.parent.name}/{path.name}": path.read_bytes()
        for path in paths
        if path.suffix in (".npz", ".done")
    }


def done(folder: Path) -> int:
    """How many shards are done in a run's folder."""
    return len(list(folder.glob("raw/*/*.done")))
