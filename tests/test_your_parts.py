"""docs/your_parts.md is executed: its parts, its recipe, its command."""

import os
import re
import subprocess
import sys
from pathlib import Path

import mmcv
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "your_parts.md").read_text(encoding="utf-8")
PARTS, RECIPE = re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
(COMMAND,) = re.findall(r"^a2mim .*$", TEXT, flags=re.MULTILINE)
KINDS = ("Mask", "Fill", "Target", "Decoder", "Loss")


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_part_is_shown(kind):
    assert f'"""{kind}: ' in PARTS


@pytest.mark.slow
def test_the_example_trains(tmp_path):
    (tmp_path / "my_parts.py").write_text(PARTS)
    (tmp_path / "my_recipe.py").write_text(RECIPE)
    for i in range(16):  # without labels, so that nothing is judged
        image = np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8)
        mmcv.imwrite(image, str(tmp_path / "images" / f"{i}.png"))
    few = ["--data", "images", "--laptop", "--cfg-options", "global_batch_size=8", "export=[]"]
    done = subprocess.run(
        [sys.executable, "-m", "a2mim.cli", *COMMAND.split()[1:], *few],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "each image's target's m" in done.stdout
    log = next((tmp_path / "runs" / "my_recipe").glob("log.jsonl")).read_text()
    assert '"loss_two_hidden"' in log and '"loss_two_mean"' in log and '"loss_smooth_l1"' in log
    assert list((tmp_path / "runs" / "my_recipe" / "reconstructions").glob("*.png"))
