"""docs/your_network.md is executed: its network, its recipe, its commands, and the lines that load the result."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "your_network.md").read_text()
NETWORK, RECIPE, LOADING = re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^a2mim .*$", TEXT, flags=re.MULTILINE)


def run(command: str, folder: Path) -> str:
    found = subprocess.run(
        [sys.executable, "-m", "a2mim.cli", *command.split()[1:]],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr[-2000:]
    return found.stdout


@pytest.mark.slow
def test_the_example_runs_and_its_weights_load_without_a2mim(tmp_path):
    assert len(NETWORK.splitlines()) <= 20
    (tmp_path / "my_net.py").write_text(NETWORK)
    (tmp_path / "my_recipe.py").write_text(RECIPE)
    check, pretrain, knn = COMMANDS
    assert "'stage': 32 channels, 8 x 8 cells of 8 px, NCHW (measured by stripes)" in run(check, tmp_path)
    few = " --cfg-options judge.train_images=64 judge.test_images=64"
    said = run(pretrain + few, tmp_path)
    assert "mask token at 'stage'" in said and "how to load it stands in runs/my_net/encoder/README.md" in said
    assert "top-1" in run(knn, tmp_path)
    lines = (
        f"import sys\nsys.modules['a2mim'] = None\n{LOADING}\nimport torch\ntorch.save(model.state_dict(), 'out.pt')"
    )
    subprocess.run([sys.executable, "-c", lines], cwd=tmp_path, check=True)
    loaded = torch.load(tmp_path / "out.pt", weights_only=True)
    assert loaded["classifier.weight"].shape == (10, 32) and loaded["stem.1.running_var"].ne(1).all()
