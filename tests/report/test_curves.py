"""Curves: one point a step, in order, whatever else a line of the log holds."""

import json

from report_runs import make_run

from a2mim.report import read_run
from a2mim.report.curves import curves


def test_a_line_with_a_loss_and_numbers_of_the_features_is_one_point(tmp_path):
    folder = make_run(tmp_path / "a")
    lines = [json.loads(text) for text in (folder / "log.jsonl").read_text().splitlines()]
    for line in lines[9::10]:
        line |= {"effective_rank": 5.0, "feature_std": 0.1}
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    plots = {plot.title: plot for plot in curves([read_run(folder)])}
    loss = plots["Loss"].lines[0]
    assert loss.x == list(range(1, 61)) and "loss goes from 1 at step 1 to 0.01667 at step 60" in plots["Loss"].message
    assert plots["Effective rank of the features"].lines[0].x == [10, 20, 30, 40, 50, 60]
    assert plots["k-NN on the way"].message == "k-NN on few images: k-NN is 54% at step 60."


def test_memory_has_a_curve_without_a_gpu(tmp_path):
    plots = {plot.title: plot for plot in curves([read_run(make_run(tmp_path / "a"))])}
    assert plots["Memory of the training process"].lines[0].y == [1.5] * 60
    assert "GPU memory" not in plots
