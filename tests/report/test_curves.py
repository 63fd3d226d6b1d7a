"""Curves: one point a step, in order, whatever else a line of the log holds."""

import json

from report_runs import make_run

from a2mim.report import read_run
from a2mim.report.curves import curves, on_the_way


def test_a_line_with_a_loss_and_numbers_of_the_features_is_one_point(tmp_path):
    folder = make_run(tmp_path / "a")
    lines = [json.loads(text) for text in (folder / "log.jsonl").read_text().splitlines()]
    for line in lines[9::10]:
        line |= {"effective_rank": 5.0, "feature_std": 0.1}
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = read_run(folder)
    plots = {plot.title: plot for plot in (*curves([run]), *on_the_way([run]))}
    loss = plots["Loss"].lines[0]
    assert loss.x == list(range(1, 61)) and "loss goes from 1 at step 1 to 0.01667 at step 60" in plots["Loss"].message
    assert plots["Effective rank of the features"].lines[0].x == [10, 20, 30, 40, 50, 60]
    assert plots["Probes on the way"].message == "Probes on the way, on few images: k-NN is 54% at step 60."


def with_probes(folder):
    """A run whose log holds a k-NN at steps 20 and 40, and a linear probe at step 40 alone."""
    make_run(folder)
    probes = [{"step": 20, "knn_top1": 40.0, "knn_interval": [35.0, 45.0]}]
    probes.append({"step": 40, "knn_top1": 50.0, "knn_interval": [45.0, 55.0], "linear_top1": 60.0})
    with (folder / "log.jsonl").open("a") as log:
        log.writelines(json.dumps(line | {"linear_interval": [55.0, 66.0]}) + "\n" for line in probes)
    return read_run(folder)


def test_probes_on_the_way_have_their_intervals(tmp_path):
    (plot,) = [plot for plot in on_the_way([with_probes(tmp_path / "a")]) if plot.title == "Probes on the way"]
    assert [(line.label, line.x, line.y) for line in plot.lines] == [
        ("k-NN", [20, 40, 60], [40.0, 50.0, 54.0]),
        ("Linear probe", [40], [60.0]),
    ]
    assert plot.lines[0].low is None  # the last line of the log has no interval
    assert (plot.lines[1].low, plot.lines[1].high) == ([55.0], [66.0])


def test_probes_of_two_runs_are_compared_one_by_one(tmp_path):
    plots = {plot.title: plot for plot in on_the_way([with_probes(tmp_path / name) for name in ("a", "b")])}
    assert [line.label for line in plots["k-NN on the way"].lines] == ["a", "b"]
    assert [line.label for line in plots["Linear probe on the way"].lines] == ["a", "b"]
    assert "Attentive probe on the way" not in plots and "Probes on the way" not in plots


def test_memory_has_a_curve_without_a_gpu(tmp_path):
    plots = {plot.title: plot for plot in curves([read_run(make_run(tmp_path / "a"))])}
    assert plots["Memory of the training process"].lines[0].y == [1.5] * 60
    assert "GPU memory" not in plots
