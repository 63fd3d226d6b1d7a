"""docs/tutorial.ipynb is executed as it stands, at a tiny scale, in a fresh process."""

import ast
import json
import subprocess
import sys
from pathlib import Path

NOTEBOOK = json.loads((Path(__file__).parents[1] / "docs" / "tutorial.ipynb").read_text(encoding="utf-8"))
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
TINY = """
import json, mmcv, numpy as np
generator = np.random.default_rng(0)
for split, number in (("train", 16), ("test", 8)):
    for i in range(number):
        image = generator.integers(0, 120, (40, 40, 3), np.uint8) + np.uint8(100 * (i % 2))
        mmcv.imwrite(image, f"tiny/{split}/{'ab'[i % 2]}/{i}.png")
DATA = "tiny"
SETTINGS = {"schedule.epochs": 1, "schedule.warmup_epochs": 0, "global_batch_size": 8, "data.img_size": 32}
shown = []

def show(value):  # what a notebook does with the last value of a cell
    shown.append(value._repr_html_() if hasattr(value, "_repr_html_") else repr(value))

"""


def as_a_notebook_would(cell):
    """The code of a cell, whose last expression is shown."""
    tree = ast.parse(cell)
    if isinstance(tree.body[-1], ast.Expr):
        tree.body[-1] = ast.Expr(ast.Call(ast.Name("show", ast.Load()), [tree.body[-1].value], []))
    return ast.unparse(ast.fix_missing_locations(tree))


def test_the_notebook_runs_from_its_first_cell_to_its_last(tmp_path):
    first, *others = map(as_a_notebook_would, CODE)
    script = "\n".join([first, TINY, *others, 'json.dump(shown, open("shown.json", "w"))'])
    ran = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    shown = json.loads((tmp_path / "shown.json").read_text())
    assert len(shown) == 7
    data, summary, _, results, compared, receipts, width = shown
    assert data.count("<img") == 8
    assert "was pre-trained on 16 images" in summary and "<svg" in summary
    assert "dino-knn" in results and compared.startswith("<p>") and "safetensors" in receipts
    assert width == "512"


def test_the_notebook_is_kept_without_outputs():
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in NOTEBOOK["cells"])
