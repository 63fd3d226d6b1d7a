"""A run on local data opens no connection: training, judging, exporting, the check in a fresh process, embedding."""

import json
import os
import subprocess
import sys

import mmcv
import numpy as np
import pytest

# Python runs this file at the start of every interpreter, those of checks and workers included.
GUARD = """
import os, sys

def watch(event, arguments):
    network = event == "socket.__new__" and arguments[1] in (2, 10)  # AF_INET, AF_INET6
    if network or event in ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname"):
        if event in ("socket.connect", "socket.bind") and arguments[0].family not in (2, 10):
            return
        with open(os.environ["SOCKETS_SEEN"], "a") as file:
            file.write(f"{event} {arguments!r} {sys.argv[:1]}\\n")
        raise PermissionError("no sockets here")

sys.addaudithook(watch)
with open(os.environ["SOCKETS_SEEN"] + ".started", "a") as file:
    file.write(sys.executable + "\\n")
"""
SCRIPT = """
import sys
from a2mim.cli import main
recipe, data, run, out = sys.argv[1:]
machine = ["--device", "cpu", "--num-workers", "1"]
status = main(["pretrain", recipe, "--data", data, "--work-dir", run, *machine])
status = status or main(["export", run, "--to", "timm", "--data", data, "--out", run + "/export", "--device", "cpu"])
sys.exit(status or main(["embed", run, data, "--out", out, "--device", "cpu"]))
"""
RECIPE = """
model = dict(
    encoder=dict(name="vit_tiny_patch16_224", model_args=dict(patch_size=8, embed_dim=8, depth=2, num_heads=2)),
    masking=dict(type="BlockMask", mask_patch_size=8),
    losses=[dict(type="MaskedL1")],
)
data = dict(img_size=32)
global_batch_size = 8
schedule = dict(epochs=2, warmup_epochs=0)
export = ["timm"]
"""


@pytest.mark.slow
def test_a_whole_run_by_one_process_opens_no_socket(tmp_path):
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for number in range(16):
            image = generator.integers(0, 255, (36, 36, 3), np.uint8)
            mmcv.imwrite(image, str(tmp_path / "images" / split / "ab"[number % 2] / f"{number:02d}.png"))
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD)
    (tmp_path / "recipe.py").write_text(RECIPE)
    seen = tmp_path / "seen"
    paths = os.pathsep.join(filter(None, [str(tmp_path / "guard"), os.environ.get("PYTHONPATH", "")]))
    environment = os.environ | {"PYTHONPATH": paths, "SOCKETS_SEEN": str(seen), "XDG_CACHE_HOME": str(tmp_path / "c")}
    places = [str(tmp_path / name) for name in ("recipe.py", "images", "run", "e.npz")]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *places], env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not seen.exists(), seen.read_text()
    assert len(seen.with_suffix(".started").read_text().splitlines()) >= 3  # the run, and the checks of two exports
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["judged"]["after"]
    assert (tmp_path / "run" / "encoder" / "receipt.json").is_file() and np.load(places[3])["embedding"].shape[0] == 16
