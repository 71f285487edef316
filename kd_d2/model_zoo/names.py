"""Resolves the names under which configs and weights are given."""

import difflib
import importlib.resources
from pathlib import Path

from kd_d2.model_zoo.table import PREFIX, ZooError, check_weights_name, find

_HERE = Path(__file__).resolve().parent
_ENDINGS = (".yaml", ".yml")


def _own_configs() -> Path:
    """kd_d2's configs: those of the checkout, or the copy inside an installed package."""
    packaged = _HERE / "configs"
    return packaged if packaged.is_dir() else _HERE.parents[1] / "configs"


def _zoo() -> Path:
    """The folder of Detectron2's packaged configs."""
    return Path(str(importlib.resources.files("detectron2") / "model_zoo" / "configs"))


def _with_ending(name: str) -> str:
    return name if name.endswith(_ENDINGS) else name + ".yaml"


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml"))


def resolve_config_file(name: str) -> str:
    """Finds a config.

    Args:
        name: the path of a file; or a name in kd_d2's ``configs`` such as "LGD/fcos_x101.yaml"; or
            a name in Detectron2's zoo such as "COCO-Detection/retinanet_R_50_FPN_1x", where
            ".yaml" may be left out; or "kd_d2://" and the name of weights, for their config.

    Returns:
        the path of the existing file; the first of these that there is.

    Raises:
        FileNotFoundError: names the nearest configs there are.
        ZooError: for a "kd_d2://" name that is not in the table, or is no detector.
    """
    if name.startswith(PREFIX):
        entry = find(name)
        if entry.config is None or entry.kind == "backbone":
            raise ZooError(f"{name} is a {entry.kind}, and a detector is needed here.")
        return resolve_config_file(entry.config)
    if not name:
        raise FileNotFoundError("The name of a config is empty: give a path or a model-zoo name.")
    candidates = [Path(name), Path(_with_ending(name))]
    candidates += [folder / _with_ending(name) for folder in (_own_configs(), _zoo())]
    for path in candidates:
        if path.is_file():
            return str(path)
    near = _nearest(name)
    guess = f" Did you mean {' or '.join(near)}?" if near else ""
    raise FileNotFoundError(
        f"There is no config {name!r}: neither a file of that path, nor one in {_own_configs()}, "
        f"nor in Detectron2's model zoo.{guess}"
    )


def _nearest(name: str) -> list[str]:
    known = [*_names(_own_configs()), *_names(_zoo())]
    name = _with_ending(name)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if near:
        return near
    # somebody who has the folder wrong has the file's name right
    by_file = {}
    for entry in known:
        by_file.setdefault(entry.rpartition("/")[2], []).append(entry)
    matches = difflib.get_close_matches(name.rpartition("/")[2], list(by_file), n=3, cutoff=0.7)
    return [entry for match in matches for entry in by_file[match]][:3]


def _name_in_zoo(config: str) -> str | None:
    """The name of a config in Detectron2's zoo, given that name or the file's path; else None."""
    if not config:
        return None
    try:
        path = Path(resolve_config_file(config)).resolve()
    except FileNotFoundError:
        return None
    zoo = _zoo().resolve()
    return path.relative_to(zoo).as_posix() if path.is_relative_to(zoo) else None


def resolve_weights(weights: str, config_name: str = "") -> str:
    """Says where weights come from.

    Args:
        weights: a URL, a "detectron2://" or "kd_d2://" address, the path of a file, or "" for those
            that Detectron2 published for ``config_name``.
        config_name: the config they belong to: a path, a model-zoo name or a "kd_d2://" name, which
            is their own, too.

    Returns:
        a URL, an address or a path for a checkpointer; "" if none are given and none published.

    Raises:
        FileNotFoundError: for a file that does not exist.
        ZooError: for a "kd_d2://" name that is not in the table, or that is of no use as it is.
    """
    if not weights and config_name.startswith(PREFIX):
        weights = config_name
    if not weights:
        return _published_weights(config_name)
    if "://" in weights:
        check_weights_name(weights)
        return weights
    if not Path(weights).is_file():
        raise FileNotFoundError(
            f"There are no weights at {weights!r}"
            f"{f' for the config {config_name!r}' if config_name else ''}: put the checkpoint "
            "(.pth or .pkl) there, or give its path, a https://, detectron2:// or kd_d2:// "
            "address, or '' for the weights that Detectron2 published for a config of its zoo."
        )
    return weights


def _published_weights(config_name: str) -> str:
    name = _name_in_zoo(config_name)
    if name is None:
        return ""
    from detectron2.model_zoo.model_zoo import _ModelZooUrls  # kd_d2/__init__ made it importable

    return _ModelZooUrls.query(name) or ""
