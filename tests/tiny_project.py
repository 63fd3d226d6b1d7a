"""A folder as a user has it: 24 photographs of two classes, and a tiny recipe of each kind."""

from pathlib import Path

import mmcv
import numpy as np

TINY = """
model = dict(
    encoder=dict(name="test_vit"),
    masking=dict(type="BlockMask", mask_patch_size=16, mask_ratio=0.5),
    losses=[dict(type="MaskedL1")],
)
data = dict(img_size=32)
global_batch_size = 8
schedule = dict(epochs=1, warmup_epochs=0)
log = dict(rows=2, pictures=2)
"""
FINETUNE = """
data = dict(img_size=32)
global_batch_size = 8
schedule = dict(epochs=1, warmup_epochs=0)
export = []
"""
REFINE = "heads = dict(hidden=32, predicted=32, width=16, alone_epochs=0)" + FINETUNE


def write_project(folder: Path) -> None:
    """Writes photographs/, with 16 images to train on and 8 to test on, and the three recipes, tiny*.py."""
    generator = np.random.default_rng(0)
    for split, number in (("train", 16), ("test", 8)):
        for i in range(number):
            image = generator.integers(0, 120, (40, 40, 3), np.uint8) + np.uint8(100 * (i % 2))
            mmcv.imwrite(image, str(folder / "photographs" / split / ("cats", "dogs")[i % 2] / f"{i}.png"))
    (folder / "tiny.py").write_text(TINY)
    (folder / "tiny_finetune.py").write_text(FINETUNE)
    (folder / "tiny_refine.py").write_text(REFINE)
