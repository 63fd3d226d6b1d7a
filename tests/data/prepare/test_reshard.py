import errno
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_images import encoded, picture, write_tar

from a2mim.data import check_shards, open_dataset
from a2mim.data.access import Access
from a2mim.data.errors import MachineError
from a2mim.data.prepare import reshard as module
from a2mim.data.prepare.reencode import KEPT_KIND, KEPT_SMALL, KEPT_UNREADABLE, reencode
from a2mim.data.prepare.reshard import Encoding, reshard
from a2mim.data.shards.tarfiles import members

AS_IS = Encoding(short_side=None)
ONE = Access(processes=1)


def contents(path) -> dict[str, bytes]:
    data = Path(path).read_bytes()
    return {name: data[offset : offset + size] for name, offset, size in members(str(path))}


def samples_of(dataset) -> list[tuple[bytes, int]]:
    return [(dataset.store.content(i), int(dataset.labels[i])) for i in range(len(dataset))]


def test_packing_anew_keeps_every_image_and_label_and_shuffles(shards, tmp_path):
    before = open_dataset(shards)
    made = reshard(shards, tmp_path / "new", AS_IS, samples_per_shard=7, access=ONE)
    after = open_dataset(made["pattern"])
    assert made["images"] == 40 and made["shards"] == 6 and after.shard_sizes.tolist() == [7] * 5 + [5]
    assert sorted(samples_of(after)) == sorted(samples_of(before)) and samples_of(after) != samples_of(before)
    names = (tmp_path / "new" / "files.txt").read_text().splitlines()
    assert names[13] == "part-1.tar/00013"
    number = [int(after.name(i).rpartition("/")[2]) for i in range(40)]
    assert [before.store.content(n) for n in number] == [content for content, _ in samples_of(after)]
    ordered = reshard(shards, tmp_path / "ordered", AS_IS, seed=None, access=ONE)
    assert samples_of(open_dataset(ordered["pattern"])) == samples_of(before)


def test_all_members_of_a_sample_go_along_and_labels_become_numbers(tmp_path):
    long, jpg = "deep/" + "n" * 150, encoded(picture(0))
    write_tar(
        tmp_path / "a.tar",
        [
            *(("x.json", b'{"label": "dog", "by": "me"}'), ("x.jpg", jpg), ("x.seg.png", b"mask")),
            *((f"{long}.txt", b"caption"), (f"{long}.cls", b"cat"), (f"{long}.jpg", jpg)),
            *(("lonely.cls", b"cat"), ("x.jpg", b"again")),
        ],
        format=tarfile.GNU_FORMAT,
    )
    made = reshard(tmp_path / "a.tar", tmp_path / "new", AS_IS, seed=None, access=ONE)
    assert contents(tmp_path / "new" / "shard-000000.tar") == {
        "000000000.json": b'{"label": "dog", "by": "me"}',
        "000000000.jpg": jpg,
        "000000000.seg.png": b"mask",
        "000000000.cls": b"1",
        "000000001.txt": b"caption",
        "000000001.jpg": jpg,
        "000000001.cls": b"0",
    }
    assert open_dataset(made["pattern"]).class_names == ["cat", "dog"] and made["done"] == {"kept": 2}


def test_large_images_are_made_smaller_once_and_others_kept(tmp_path):
    large, small = picture(1, 120, 200), picture(2)
    damaged = encoded(large)[:500]
    members_ = [
        ("a.jpg", encoded(large)),
        ("b.png", encoded(large, "png")),
        ("c.jpg", encoded(small)),
        ("d.jpg", damaged),
    ]
    write_tar(tmp_path / "a.tar", members_)
    made = reshard(tmp_path / "a.tar", tmp_path / "new", Encoding(60, 90), seed=None, access=ONE)
    assert made["done"] == {"re-encoded": 2, f"kept: {KEPT_SMALL}": 1, f"kept: {KEPT_UNREADABLE}": 1}
    written = contents(tmp_path / "new" / "shard-000000.tar")
    assert list(written) == ["000000000.jpg", "000000001.jpg", "000000002.jpg", "000000003.jpg"]
    assert written["000000002.jpg"] == encoded(small) and written["000000003.jpg"] == damaged
    expected = np.asarray(Image.fromarray(large).resize((100, 60), Image.Resampling.LANCZOS)).astype(int)
    for name in ("000000000.jpg", "000000001.jpg"):
        found = np.asarray(Image.open(io.BytesIO(written[name]))).astype(int)
        assert found.shape == (60, 100, 3) and np.abs(found - expected).mean() < 4
    manifest = json.loads((tmp_path / "new" / "manifest.json").read_text())
    assert (manifest["short_side"], manifest["quality"], manifest["done"]) == (60, 90, made["done"])
    assert manifest["bytes_before"] == sum(len(data) for _, data in members_)


def test_what_jpeg_cannot_stand_for_is_kept():
    rgb = picture(0, 90, 90)
    alpha = Image.fromarray(rgb).convert("RGBA")
    buffer = io.BytesIO()
    alpha.save(buffer, "PNG")
    assert reencode(buffer.getvalue(), 50, 90) == KEPT_KIND
    assert reencode(encoded(np.zeros((90, 90), np.uint16), "png"), 50, 90) == KEPT_KIND
    assert reencode(b"\x93NUMPY", 50, 90) == KEPT_UNREADABLE
    exif = Image.Exif()
    exif[274] = 6
    turned = reencode(encoded(rgb, exif=exif), 50, 90)
    assert Image.open(io.BytesIO(turned)).getexif()[274] == 6
    gray = Image.open(io.BytesIO(reencode(encoded(rgb[:, :, 0]), 50, 90)))
    assert gray.mode == "L" and gray.size == (50, 50)


KILLED = """
import os, signal, sys
from a2mim.data.prepare import reshard
from a2mim.data.access import Access
count = 0
def each(work, parts, processes):
    for part in parts:
        if isinstance(part, reshard.Part) and part.path.endswith("2.tar"):
            with reshard.partial_path(part.path) as unfinished:
                unfinished.write_bytes(b"half")
                os.utime(unfinished, (0, 0))  # long ago: nobody is writing it any more
                os.kill(os.getpid(), signal.SIGKILL)
        yield part, work(part)
reshard.each = each
reshard.reshard(sys.argv[1], sys.argv[2], reshard.Encoding(None), samples_per_shard=7)
"""


def test_a_killed_run_goes_on_where_it_was_and_another_one_is_refused(shards, tmp_path):
    out = tmp_path / "out"
    killed = subprocess.run([sys.executable, "-c", KILLED, shards, out], capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    assert sorted(path.name for path in out.glob("*.tar")) == ["shard-000000.tar", "shard-000001.tar"]
    with pytest.raises(ValueError, match="made with seed=0, now it is 1"):
        reshard(shards, out, AS_IS, samples_per_shard=7, seed=1, access=ONE)
    with pytest.raises(ValueError, match="made with short_side=None, now it is 384"):
        reshard(shards, out, samples_per_shard=7, access=ONE)
    made = reshard(shards, out, AS_IS, samples_per_shard=7, access=ONE)
    assert (made["written"], made["kept"], made["done"]) == (4, 2, {"kept": 40})
    reshard(shards, tmp_path / "whole", AS_IS, samples_per_shard=7, access=ONE)
    for path in (tmp_path / "whole").glob("*.tar"):
        assert (out / path.name).read_bytes() == path.read_bytes()
    record = json.loads((out / "written.json").read_text())
    del record["shard-000003.tar"]  # as if killed between the shard's name and the record of it
    (out / "written.json").write_text(json.dumps(record))
    made = reshard(shards, out, AS_IS, samples_per_shard=7, access=ONE)
    assert (made["written"], made["done"]) == (1, {"kept": 40})
    assert not list(out.glob(".*.partial")) and check_shards(made["pattern"]).ok


def test_several_processes_write_the_same_shards(shards, tmp_path):
    for name, processes in (("one", 1), ("two", 2)):
        reshard(shards, tmp_path / name, AS_IS, samples_per_shard=10, access=Access(processes=processes))
    for path in (tmp_path / "one").glob("*.tar"):
        assert (tmp_path / "two" / path.name).read_bytes() == path.read_bytes()


def test_settings_that_cannot_be_are_refused(shards, tmp_path):
    for settings, message in (((0, 90), "short_side=0"), ((5, 0), "quality=0")):
        with pytest.raises(ValueError, match=message):
            Encoding(*settings)
    with pytest.raises(ValueError, match="samples_per_shard=0"):
        reshard(shards, tmp_path / "new", samples_per_shard=0)
    os.truncate(tmp_path / "part-2.tar", 7000)
    with pytest.raises(OSError, match=r"part-2\.tar: byte \d+: cut short"):
        reshard(shards, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.warns(UserWarning, match="1 bad shards are left out"):
        made = reshard(shards, tmp_path / "new", AS_IS, access=Access(skip_bad_shards=True, processes=1))
    manifest = json.loads((tmp_path / "new" / "manifest.json").read_text())
    assert made["images"] == 29 and "part-2.tar: byte" in manifest["skipped_shards"][0]


def test_a_planted_link_is_not_followed_and_a_full_disk_leaves_nothing_half(shards, tmp_path, monkeypatch):
    out, victim = tmp_path / "out", tmp_path / "victim"
    victim.write_text("precious")
    out.mkdir()
    for name in ("shard-000000.tar.part", "written.json"):
        (out / name).symlink_to(victim)

    def full(archive, name, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_add", full)
        with pytest.raises(MachineError, match="no room is left on the disk"):
            reshard(shards, out, access=Access(processes=1))
    assert not list(out.glob(".*.partial")) and not list(out.glob("shard-*.tar"))
    assert reshard(shards, out, access=Access(processes=1))["images"] == 40
    assert victim.read_text() == "precious"
