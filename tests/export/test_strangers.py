"""A folder, a summary or a name from a stranger is data: nothing in it is run, and no page is forged by it."""

import json
import pickle
from pathlib import Path

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file, save_file

from a2mim.cli import main
from a2mim.export import TARGETS, ExportError, export, exporting
from a2mim.export.card import published, tell_training
from a2mim.export.receipt import hash_files
from a2mim.export.target import Subject
from a2mim.export.verify import verify
from a2mim.files import write_json
from a2mim.pixels import Preprocessing

SIZE = 32
UNTOUCHED = {"recalibrated": False, "why": "a test"}
CANARY = "canary"
PAYLOADS = [
    f"`\n\n```python\nopen('{CANARY}', 'w')\n```\n",
    f"x\n~~~\n```python\n__import__('os').system('touch {CANARY}')\n```",
    "---\nlicense: mit\n---\n",
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "``` ```` `a`",
    "\x1b[2Jerror: gone\r\n\u202etxt.exe",
    "](http://evil) [x](javascript:alert(1)) ![](http://evil/p.png)",
]


def write(root: Path, target: str, name: str = "resnet18", license: str = "", trained: str = "") -> Path:
    """A folder of this target, whole but for its check in a fresh process."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0)
    pixels = Preprocessing((0.4, 0.5, 0.6), (0.2, 0.2, 0.3), (SIZE, SIZE))
    subject = Subject(model.eval(), {}, pixels, [], "somewhere", trained, license)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "recheck", lambda *_: {"problem": "", "mode": "loaded"})
        exporting.prove(TARGETS[target], subject, root / target, UNTOUCHED)
    return root / target


def resign(folder: Path, **changes) -> None:
    """A receipt that fits whatever lies in the folder, as a stranger would write it."""
    receipt = json.loads((folder / "receipt.json").read_text()) | changes
    write_json(folder / "receipt.json", receipt | {"sha256": hash_files(folder)})


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """The working folder; fails the test where a payload has left its mark, there or in an exported folder."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not list(tmp_path.rglob(CANARY))


@pytest.mark.parametrize("payload", PAYLOADS)
def test_what_a_summary_says_is_shown_and_never_run(watched, payload):
    run = watched / "run"
    write_json(run.parent / "summary.json", {})
    run.mkdir()
    asked = {"config": payload, "data": [payload, payload], "laptop": payload, "source": payload}
    write_json(run / "summary.json", {"asked": asked, "steps": payload, "versions": {"a2mim": payload}})
    told = tell_training(run)
    assert told and told.isprintable()
    folder = write(watched / "out", "timm", license=payload, trained=told)
    page = (folder / "README.md").read_text()
    fences = [line for line in page.splitlines() if line.lstrip().startswith(("```", "~~~"))]
    assert fences == ["```python", "```"] and "\x1b" not in page and "\u202e" not in page
    front = page.split("\n---\n")[0].removeprefix("---\n")
    assert set(yaml.safe_load(front)) == {"license", "library_name", "pipeline_tag", "tags"}
    (found,) = verify(folder)
    assert found["mode"] == "loaded"


def test_a_strangers_lines_are_compared_and_none_is_run(watched):
    folder = write(watched, "timm")
    page = folder / "README.md"
    original = page.read_text()
    for text in (
        original.replace("import numpy as np\n", f"import numpy as np\nopen('{CANARY}', 'w')\n"),
        original + f"\n```python\nopen('{CANARY}', 'w')\n```\n",
        original.replace("```python", f"```python\nopen('{CANARY}', 'w')\n```\n\n```python"),
        "",
    ):
        page.write_text(text)
        resign(folder)
        with pytest.raises(ExportError, match="are not those that a2mim writes for timm; none of them was run"):
            verify(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "local-dir:/tmp"}, "which timm does not know"),
        ({"architecture": f"__import__('os').system('touch {CANARY}')"}, "which timm does not know"),
        ({"architecture": ["resnet18"]}, "names no architecture"),
        ({"target": "nowhere"}, "which is none of timm"),
    ],
)
def test_a_receipt_names_known_things_only(watched, changes, message):
    folder = write(watched, "timm")
    resign(folder, **changes)
    with pytest.raises(ValueError, match=message):
        verify(folder)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("packages", ["timm", "safetensors", "antigravity"], "which no target needs"),
        ("tolerance", 1e9, "tolerance"),
        ("weights", "../timm/model.safetensors", "no file in the folder"),
        ("preprocessing", {"mean": ["exit()"] * 3, "std": [1.0] * 3, "img_size": [32, 32]}, "finite number"),
        ("contract", ["timm", {"architecture": "resnet18", "model_args": {"layers": [10**9] * 4}}], "more than"),
        ("contract", ["timm", {"architecture": "resnet18", "model_args": {"checkpoint_path": "x"}}], "checkpoint_path"),
    ],
)
def test_a_request_holds_plain_values_only(watched, key, value, message):
    folder = write(watched, "timm")
    check = json.loads((folder / "receipt.json").read_text())["check"]
    resign(folder, check=check | {key: value})
    with pytest.raises(ValueError, match=message):
        verify(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": "hf-hub:someone/something"},
        {"model_args": {"pretrained_cfg_overlay": {"file": "x"}}},
        {"model_args": {"act_layer": {"type": "os.system"}}},
        {"auto_map": {"AutoModel": "evil.Model"}},
        {"pretrained_cfg": {"custom_load": True}},
        {"pretrained_cfg": {"url": "http://127.0.0.1/x"}},
    ],
)
@pytest.mark.parametrize("target", ["timm", "transformers"])
def test_a_config_holds_known_keys_and_plain_values_only(watched, target, changes):
    folder = write(watched, target)
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | changes)
    resign(folder)
    with pytest.raises(ValueError, match=r"config\.json"):
        verify(folder)


def test_the_header_of_a_safetensors_file_builds_known_models_only(watched):
    folder = write(watched, "safetensors")
    tensors = load_file(folder / "encoder.safetensors")
    header = {"architecture": '"local-dir:."', "model_args": "{}"}
    save_file(tensors, folder / "encoder.safetensors", metadata=header)
    resign(folder)
    with pytest.raises(ValueError, match="names local-dir:"):
        verify(folder)


@pytest.mark.parametrize(
    "line",
    [
        f"open('{CANARY}', 'w')",
        "_base_ = '/etc/passwd.py'",
        "custom_imports = {'imports': ['antigravity'], 'allow_failed_imports': False}",
        "model = {'backbone': {'type': 'os.system', 'command': 'true'}}",
        "model = {'backbone': {'type': 'ResNet', 'init_cfg': {'type': 'Pretrained', 'checkpoint': 'http://x'}}}",
        "model = {'backbone': {'type': 'TIMMBackbone', 'model_name': 'resnet18', 'checkpoint_path': '/x'}}",
    ],
)
def test_openmmlabs_configuration_is_plain_values_of_known_classes(watched, line):
    folder = write(watched, "mmpretrain")
    path = folder / "encoder.py"
    path.write_text(path.read_text() + "\n" + line + "\n")
    resign(folder)
    with pytest.raises(ValueError, match=r"encoder\.py"):
        verify(folder)


@pytest.mark.parametrize(("target", "file"), [("detectron2", "backbone.yaml"), ("ultralytics", "encoder.yaml")])
def test_a_yaml_that_a_library_would_execute_is_compared_first(watched, target, file):
    folder = write(watched, target)
    with (folder / file).open("a") as text:
        text.write(f"X: !!python/object/apply:os.system ['touch {CANARY}']\n")
    resign(folder)
    with pytest.raises(ExportError, match="is not what a2mim writes"):
        verify(folder)


def test_a_pickle_that_would_run_something_is_refused(watched):
    class Evil:
        def __reduce__(self):
            return open, (CANARY, "w")

    folder = write(watched, "detectron2")
    (folder / "encoder.pkl").write_bytes(pickle.dumps({"model": {}, "x": Evil()}))
    resign(folder)
    with pytest.raises(ExportError, match="has no place in a file of arrays"):
        verify(folder)


def test_nothing_of_the_machine_stands_in_what_is_published(tmp_path):
    (tmp_path / "home" / "me").mkdir(parents=True)
    (receipt,) = export("resnet10t", ["timm"], tmp_path / "home" / "me" / "out")
    folder = Path(receipt["folder"])
    for name in ("README.md", "receipt.json", "config.json"):
        assert str(tmp_path) not in (folder / name).read_text()
    assert json.loads((folder / "config.json").read_text())["pretrained_cfg"]["license"] is None
    assert "No licence was chosen" in (folder / "README.md").read_text()


def test_addresses_and_paths_are_published_without_their_secrets():
    assert published("/home/me/data/flowers") == "flowers"
    assert published("https://me:pw@host/a/b.tar?sig=1#x") == "https://host/a/b.tar"
    assert published("s3://key:secret@bucket/x.tar") == "s3://bucket/x.tar"


def test_verify_says_in_one_line_that_nothing_was_run(watched, capsys):
    folder = write(watched, "timm")
    (folder / "README.md").write_text("\x1b[2J")
    resign(folder)
    assert main(["verify", str(folder)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: ") and "\x1b" not in error
