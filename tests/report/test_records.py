"""A run's folder is read as data, whatever state it is in."""

import json
import subprocess
import sys

import pytest
from report_runs import judged, make_run

from a2mim.report import read_run
from a2mim.report.tables import data_rows, where_and_how


def test_a_whole_run_is_read(tmp_path):
    run = read_run(make_run(tmp_path / "a", judged=judged()))
    assert (run.status, run.steps, run.name) == ("finished", (60, 60), "a")
    assert len(run.lines) == 60 and [line["knn_top1"] for line in run.online] == [54.0]
    assert [(d.name, d.points, d.word) for d in run.differences] == [("linear probe", 10, "gain"), ("k-NN", 10, "gain")]
    assert [picture.step for picture in run.pictures] == [0, 60]
    assert run.receipts[0]["target"] == "timm" and run.setting("data.img_size") == 64


def test_a_run_without_an_end_was_killed_unless_it_asks_itself(tmp_path):
    folder = make_run(tmp_path / "a", status="running")
    assert read_run(folder).status == "killed"
    assert read_run(folder, running=True).status == "running"


def test_damaged_lines_are_counted_and_the_others_kept(tmp_path):
    folder = make_run(tmp_path / "a")
    whole = (folder / "log.jsonl").read_bytes().splitlines(keepends=True)
    whole[3] = b"\xff\xfe{half\n"
    whole.insert(7, b'{"no": "step"}\n')
    (folder / "log.jsonl").write_bytes(b"".join(whole))
    run = read_run(folder)
    assert run.bad_lines == 2 and len(run.lines) == 59


@pytest.mark.parametrize("damage", [b"", b"{", b"[1, 2]", b"\xff", b"[" * 100_000])
def test_a_damaged_summary_leaves_what_the_log_says(tmp_path, damage):
    folder = make_run(tmp_path / "a")
    (folder / "summary.json").write_bytes(damage)
    run = read_run(folder)
    assert run.status == "killed" and run.steps == (60, None) and run.differences == []


def test_what_is_no_run_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        read_run(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="holds no run"):
        read_run(tmp_path)


def test_reading_and_drawing_need_no_torch(tmp_path):
    folder = make_run(tmp_path / "a")
    code = "import sys; from a2mim.report import write_report as w; w([sys.argv[1]], sys.argv[2]); "
    code += "sys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, str(folder), str(tmp_path / "r.html")]).returncode == 0


def test_the_commands_repeat_what_was_typed(tmp_path):
    asked = {"config": "r.py", "data": "my images", "test_data": "t", "laptop": False}
    run = make_run(tmp_path / "a", asked=asked, origins={"data.img_size": "command line", "seed": "command line"})
    first = where_and_how(read_run(run))[1][0]
    assert first == "a2mim pretrain r.py --data 'my images' --test-data t --seed 0 --cfg-options data.img_size=64"


def test_the_table_of_data_tells_sizes_channels_and_the_balance_of_the_classes(tmp_path):
    data = {"source": "photos", "images": 9, "class_counts": {"cat": 5, "dog": 4}}
    data["sizes"] = {"looked_at": 9, "least": [30, 40], "median": [60, 80], "greatest": [1200, 1600]}
    encoder = {"name": "xcit_nano", "img_size": [64, 96], "in_chans": 3}
    rows = dict(data_rows(read_run(make_run(tmp_path / "a", data=data, encoder=encoder))))
    assert rows["size in the network"] == "64 x 96 px" and rows["channels"] == "3"
    told = "from 30 x 40 to 1,200 x 1,600 px, median 60 x 80 (9 images looked at)"
    assert rows["size in the data, height x width"] == told
    assert rows["images a class"] == "4 to 5" and rows["of each"] == "cat 5, dog 4"


def told(run) -> dict[str, str]:
    return {what: many for what, many in data_rows(read_run(run)) if "repeat" in what or "equal" in what}


@pytest.mark.parametrize("damage", [{}, {"train": "x"}, {"repeated": 2}, {"pairs": 5, "in_both": {"exact": 1}}])
def test_the_table_of_data_tells_repeated_images_where_they_were_counted(tmp_path, damage):
    run = make_run(tmp_path / "a")
    assert told(run) == {}
    counts = {"repeated": {"exact": 2, "near": 0}, "in_both": {"exact": 0, "near": 1}}
    found = {**counts, "train": 900, "test": 100, "pairs": [["a.png", "b.png"], "no pair"]}
    (run / "analysis").mkdir()
    (run / "analysis" / "duplicates.json").write_text(json.dumps(found | damage))
    expected = {
        "training images that repeat another one": "2 exactly, 0 nearly of 900 compared",
        "test images that repeat a training image": "0 exactly, 1 nearly of 100 compared",
        "equal, or nearly": "a.png and b.png",
    }
    if damage:
        assert told(run).items() != expected.items()  # and no error
    else:
        assert told(run) == expected


def test_what_a2mim_evaluate_counted_stands_there_too(tmp_path):
    run = make_run(tmp_path / "a")
    result = {"protocol": "knn", "constants": {}, "correct": "01", "n_test": 2, "overlap": {"exact": 1, "near": 0}}
    (run / "results.json").write_text(json.dumps([result]))
    assert told(run) == {"test images that repeat a training image": "1 exactly, 0 nearly of 2 compared"}


def test_a_run_is_to_be_resumed_only_from_a_checkpoint(tmp_path):
    run = make_run(tmp_path / "a", status="running")
    assert not [line for line in where_and_how(read_run(run))[1] if "--resume" in line]
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "step_00000030.pth").touch()
    assert where_and_how(read_run(run))[1][-1].endswith("--resume")
