import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from small_images import encoded, picture, write_tar

from a2mim.cli import main
from a2mim.data import check_shards, make_shards, open_dataset
from a2mim.data.shards.tarfiles import members


def contents(path) -> list[tuple[str, bytes]]:
    data = path.read_bytes()
    return [(name, data[offset : offset + size]) for name, offset, size in members(str(path))]


def test_a_round_trip_keeps_bytes_labels_and_classes(class_folder, tmp_path):
    report = make_shards(class_folder, tmp_path / "out", samples_per_shard=4)
    assert report == {
        "pattern": str(tmp_path / "out" / "shard-{000000..000003}.tar"),
        "images": 15,
        "shards": 4,
        "written": 4,
        "kept": 0,
        "classes": 2,
    }
    dataset, folder = open_dataset(report["pattern"]), open_dataset(class_folder)
    assert dataset.shard_sizes.tolist() == [4, 4, 4, 3] and dataset.class_names == ["cat", "dog"]
    line_of = [int(dataset.name(i).rpartition("/")[2]) for i in range(15)]
    assert sorted(line_of) == list(range(15)) and line_of != sorted(line_of)
    assert dataset.labels.tolist() == folder.labels[line_of].tolist()
    files = (tmp_path / "out" / "files.txt").read_text().splitlines()
    written = dict(entry for k in range(4) for entry in contents(tmp_path / "out" / f"shard-00000{k}.tar"))
    for line, name in enumerate(files):
        assert written[f"{line:09d}.jpg"] == (class_folder / name).read_bytes()


def test_a_folder_without_classes_gives_shards_without_labels(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.PNG").write_bytes(encoded(picture(0), "png"))
    report = make_shards(tmp_path / "in", tmp_path / "out")
    assert report["pattern"].endswith("shard-000000.tar") and report["classes"] == 0
    assert [name for name, _ in contents(tmp_path / "out" / "shard-000000.tar")] == ["000000000.png"]
    assert open_dataset(report["pattern"]).labels.tolist() == [-1]


def test_shards_stay_below_max_bytes(class_folder, tmp_path):
    most = 20_000
    report = make_shards(class_folder, tmp_path / "out", max_bytes=most)
    sizes = [path.stat().st_size - 10_240 for path in (tmp_path / "out").glob("*.tar")]  # less the padding of the end
    assert report["shards"] == len(sizes) > 1 and max(sizes) <= most
    assert make_shards(class_folder, tmp_path / "tiny", max_bytes=1)["shards"] == 15


def test_the_shuffle_is_a_function_of_the_seed(class_folder, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_shards(class_folder, tmp_path / name, seed=seed)
    a, b, c = ((tmp_path / name / "shard-000000.tar").read_bytes() for name in "abc")
    assert a == b != c


KILLED = """
import os, signal, sys
os.environ.pop("TQDM_DISABLE", None)  # of the user: a bar that is switched off does not count
from a2mim.data.prepare import write_shards
class Progress(write_shards.ProgressBar):
    def update(self, n=1):
        super().update(n)
        if self.n == 10:
            os.kill(os.getpid(), signal.SIGKILL)
write_shards.ProgressBar = Progress
write_shards.make_shards(sys.argv[1], sys.argv[2], samples_per_shard=4)
"""


def test_a_killed_run_goes_on_where_it_was(class_folder, tmp_path):
    out = tmp_path / "out"
    killed = subprocess.run([sys.executable, "-c", KILLED, class_folder, out], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert sorted(finished) == ["shard-000000.tar", "shard-000001.tar"] and list(
        out.glob(".shard-000002.tar.*.partial")
    )
    report = make_shards(class_folder, out, samples_per_shard=4)
    assert (report["written"], report["kept"]) == (2, 2)
    assert all((out / name).stat().st_mtime_ns == written for name, written in finished.items())
    make_shards(class_folder, tmp_path / "whole", samples_per_shard=4)
    for path in (tmp_path / "whole").iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes()
    assert not list(out.glob(".*.partial"))


def test_an_interrupted_shard_does_not_get_its_name(class_folder, tmp_path):
    gone = sorted(class_folder.rglob("*.JPG"))[3]
    real = type(gone).read_bytes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(gone), "read_bytes", lambda path: 1 / 0 if path == gone else real(path))
        with pytest.raises(ZeroDivisionError):
            make_shards(class_folder, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.tar"))
    assert make_shards(class_folder, tmp_path / "out")["written"] == 1


def test_another_run_in_the_same_folder_is_refused_by_name(class_folder, tmp_path):
    make_shards(class_folder, tmp_path / "out")
    with pytest.raises(ValueError, match="made with seed=0, now it is 1"):
        make_shards(class_folder, tmp_path / "out", seed=1)
    (class_folder / "cat" / "more.jpg").write_bytes(b"x")
    with pytest.raises(ValueError, match="made with images=15, now it is 16"):
        make_shards(class_folder, tmp_path / "out")
    (tmp_path / "foreign").mkdir()
    write_tar(tmp_path / "foreign" / "a.tar", [])
    with pytest.raises(ValueError, match=r"holds tar files but no manifest\.json"):
        make_shards(class_folder, tmp_path / "foreign")


def test_nothing_to_write_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="no images in"):
        make_shards(tmp_path, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        make_shards(tmp_path / "none", tmp_path / "out")


def test_a_check_of_good_shards_is_one_line(shards):
    report = check_shards(shards)
    assert report.ok and str(report) == "40 images in 4 shards, 40 labelled: all readable"


def test_a_check_finds_what_is_wrong_and_goes_on(shards, tmp_path):
    data = bytearray((tmp_path / "part-2.tar").read_bytes())
    (tmp_path / "part-2.tar").write_bytes(data[:7000])
    write_tar(tmp_path / "part-4.tar", [("a.jpg", encoded(picture(0))), ("b.jpg", b""), ("c.jpg", b"<html>")])
    write_tar(tmp_path / "part-5.tar", [("a.txt", b"no image")])
    report = check_shards(shards)
    assert not report.ok and (report.shards, report.images, report.labelled) == (6, 32, 29)
    assert report.faults == {"empty": 1, "not an image": 1} and len(report.damaged) == 2
    assert "2 damaged shards, 1 empty, 1 not an image; first: " in str(report) and "part-2.tar: byte" in str(report)
    assert [name.rpartition("/")[2] for name in report.unreadable] == ["b (empty)", "c (not an image: 6 bytes)"]
    with pytest.raises(FileNotFoundError, match="1 of 2 shards missing"):
        check_shards([tmp_path / "part-0.tar", tmp_path / "part-9.tar"])


def test_labels_survive_as_numpy_integers(class_folder, tmp_path):
    labels = open_dataset(make_shards(class_folder, tmp_path / "out")["pattern"]).labels
    assert labels.dtype == np.int64 and np.bincount(labels).tolist() == [7, 8]


def test_a_folder_with_two_parts_becomes_two_sets_with_one_numbering(tmp_path, capsys):
    for number, place in enumerate(["train/cat", "train/dog", "train/dog", "valid/ape", "valid/dog", "extra_test"]):
        (tmp_path / "in" / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / place / f"{number}.jpg").write_bytes(encoded(picture(number)))
    with pytest.warns(UserWarning, match="extra_test/ left out"):
        made = make_shards(tmp_path / "in", tmp_path / "out", samples_per_shard=2)
    assert made["pattern"] == str(tmp_path / "out" / "train-{000000..000001}.tar") and made["images"] == 5
    assert made["test_pattern"] == str(tmp_path / "out" / "test-000000.tar")
    train, test = open_dataset(made["pattern"]), open_dataset(made["test_pattern"])
    assert train.class_names == test.class_names == ["ape", "cat", "dog"]
    assert sorted(train.labels.tolist()) == [1, 2, 2] and sorted(test.labels.tolist()) == [0, 2]
    lines = (tmp_path / "out" / "files.txt").read_text().splitlines()
    assert lines == ["train/cat/0.jpg", "train/dog/1.jpg", "train/dog/2.jpg", "valid/ape/3.jpg", "valid/dog/4.jpg"]
    for dataset in (train, test):
        for i in range(len(dataset)):
            line = int(dataset.name(i).rpartition("/")[2])
            assert dataset.store.content(i) == (tmp_path / "in" / lines[line]).read_bytes()
    (tmp_path / "out" / "train-000001.tar").unlink()
    with pytest.warns(UserWarning, match="left out"):
        assert make_shards(tmp_path / "in", tmp_path / "out", samples_per_shard=2)["written"] == 1
    with pytest.warns(UserWarning, match="left out"):
        assert main(["shards", "make", str(tmp_path / "in"), str(tmp_path / "out"), "--samples-per-shard", "2"]) == 0
    said = capsys.readouterr().out
    assert "3 classes: ape, cat, dog" in said and "--data '" in said and "--test-data '" in said


def test_names_of_any_bytes_and_links_that_lead_nowhere_do_not_stop_it(tmp_path, capsys):
    for place in (b"a/caf\xe9.jpg", b"a/back\\slash.jpg", b"stra\xdfe/two\nlines.jfif"):
        path = os.path.join(os.fsencode(tmp_path), b"in", place)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(encoded(picture(0)))
    (tmp_path / "in" / "a" / "gone.jpg").symlink_to("/nowhere")
    with pytest.warns(UserWarning, match=r"passed over: links that lead nowhere \(a/gone\.jpg\)"):
        assert main(["shards", "make", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "files.txt").read_text().splitlines() == [
        *("a/back\\slash.jpg", "a/caf\\xe9.jpg", "stra\\xdfe/two\\nlines.jfif")
    ]
    dataset = open_dataset(str(tmp_path / "out" / "*.tar"))
    assert len(dataset) == 3 and dataset.class_names == ["a", "stra\\xdfe"]
    assert "2 classes: a, stra\\xdfe" in capsys.readouterr().out
