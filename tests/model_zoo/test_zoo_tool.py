"""tools/model_zoo.py: its table, its paths, and its mistakes in one sentence."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from kd_d2.model_zoo import entries

TOOL = Path(__file__).resolve().parents[2] / "tools" / "model_zoo.py"


@pytest.fixture
def tool(cache, monkeypatch, capsys):
    """Runs a command; returns its exit code, stdout and stderr."""
    spec = importlib.util.spec_from_file_location("model_zoo_tool", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["model_zoo.py", *arguments])
        code = 0
        try:
            module.main()
        except SystemExit as exit_:
            code = exit_.code
        return code, *capsys.readouterr()

    return run


def test_list(tool):
    code, out, _ = tool("list")
    assert code == 0
    for name in entries():
        assert name in out
    (row,) = [line for line in out.splitlines() if line.startswith("coco/mask_rcnn_r50_3x ")]
    config = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"
    assert row.split() == ["coco/mask_rcnn_r50_3x", "detector", "41.0", "37.2", "-", config]
    _, out, _ = tool("list", "--kind", "backbone")
    assert "imagenet/swin_t" in out and "coco/" not in out and "lgd/" not in out


def test_list_as_json(tool):
    _, out, _ = tool("list", "--json", "--kind", "distilled")
    rows = json.loads(out)
    assert len(rows) == 14
    (row,) = [row for row in rows if row["name"] == "lgd/mask_rcnn_swin_t"]
    assert row["weights"] == "kd_d2://lgd/mask_rcnn_swin_t"
    assert (row["box_ap"], row["mask_ap"], row["gdrive"], row["cached"]) == (46.4, 42.5, None, None)


def test_show(tool):
    _, out, _ = tool("show", "kd_d2://coco/faster_rcnn_x101_3x")
    assert "43.0" in out and "MODEL.WEIGHTS kd_d2://coco/faster_rcnn_x101_3x" in out
    _, out, _ = tool("show", "lgd/fcos_r50")
    assert "https://github.com/megvii-research/LGD" in out and "convert_checkpoint.py" in out
    _, out, _ = tool("show", "lgd/fcos_r50", "--json")
    assert json.loads(out)["convert_from"] == "lgd"


def test_get_prints_the_path_and_nothing_else(tool, site, cache):
    site.files["/a/b.pth"] = b"PK\x03\x04"
    code, out, _ = tool("get", site.url("/a/b.pth"))
    assert (code, out) == (0, f"{cache / 'a' / 'b.pth'}\n")
    code, out, err = tool("get", site.url("/a/b.pth"), "--sha256", "0" * 64)
    assert (code, out) == (2, "") and "is not the file" in err


@pytest.mark.parametrize(
    "command", [("add", "NAME", "FILE"), ("get", "NAME", "--from-file", "FILE")]
)
def test_a_file_is_put_under_a_name(tool, cache, tmp_path, command):
    file = tmp_path / "downloaded.pth"
    torch.save({"weight": torch.zeros(1)}, file)
    words = {"NAME": "lgd/fcos_r50", "FILE": str(file)}
    code, out, err = tool(*[words.get(word, word) for word in command])
    path = cache / "kd_d2" / "lgd" / "fcos_r50.pth"
    assert (code, out) == (0, f"{path}\n") and path.is_file()
    assert "convert_checkpoint.py --from lgd" in err
    code, out, _ = tool("get", "lgd/fcos_r50")
    assert (code, out) == (0, f"{path}\n")
    _, out, _ = tool("list", "--kind", "distilled")
    assert "yes" in next(line for line in out.splitlines() if line.startswith("lgd/fcos_r50 "))


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("show", "coco/retinanet_r50"), "did you mean coco/retinanet_r50_"),
        (("get", "lgd/fcos_r50"), "open https://github.com/megvii-research/LGD"),
        (("get", "lgd/fcos_r50", "--gdrive-id", "x"), "no id of a file"),
        (("get", "imagenet/swin_t", "--gdrive-id", "1234567890a"), "not in Google Drive"),
        (("get", "imagenet/swin_t", "--sha256", "12"), "no SHA-256"),
        (("get", "s3://bucket/a.pth"), "no address of a kind"),
        (("get", "https://host/a.pth", "--gdrive-id", "1234567890a"), "goes with a name"),
        (("get", "ftp://host/a.pth"), "only http:// and https://"),
        (("add", "lgd/fcos_r50", "absent.pth"), "There is no file"),
    ],
)
def test_mistakes_are_one_sentence(tool, arguments, words):
    code, out, err = tool(*arguments)
    assert code == 2 and out == ""
    (line,) = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert words in line


def test_offline(tool, monkeypatch, cache):
    monkeypatch.setenv("KD_D2_OFFLINE", "1")
    code, _, err = tool("get", "imagenet/swin_t")
    assert code == 2 and "KD_D2_OFFLINE is set" in err and str(cache) in err


@pytest.mark.parametrize("arguments", [(), ("fetch",), ("list", "--kind", "teacher"), ("show",)])
def test_wrong_usage(tool, arguments):
    code, _, err = tool(*arguments)
    assert code == 2 and "usage:" in err
