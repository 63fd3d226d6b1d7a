import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from small_images import encoded, picture, write_tar

from a2mim.data import open_dataset
from a2mim.data.access import Access
from a2mim.data.shards.dali import export_index, import_index, index_path
from a2mim.data.shards.tarfiles import TarError

JPG = encoded(picture(0))
MEMBERS = [
    ("d/a.x.jpg", b"one"),
    ("b.jpg", JPG),
    ("b.cls", b"1"),
    ("e/c.png", b"two"),
    (".hidden", b""),
    ("c.cls", b"5"),
]


def test_the_index_is_in_the_form_of_wds2idx(tmp_path):
    """By hand from the tool's source: content offsets, names cut at the first dot, hidden files left out."""
    shard = str(write_tar(tmp_path / "train-0.x.tar", MEMBERS))
    path = export_index(shard)
    assert path == str(tmp_path / "train-0.idx")
    end = 1536 + -(-len(JPG) // 512) * 512
    assert Path(path).read_text().splitlines() == [
        "v1.2 4",
        "x.jpg 512 3 d/a.x.jpg",
        f"jpg 1536 {len(JPG)} b.jpg cls {end + 512} 1 b.cls",
        f"png {end + 1536} 3 e/c.png",
        f"cls {end + 3072} 1 c.cls",
    ]


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("blank", ["", " with a blank"])
def test_what_is_exported_is_imported_as_the_scan_has_it(tmp_path, format, blank):
    members = [*MEMBERS, (f"long{blank}/{'n' * 150}.jpg", JPG), (f"z{blank}.jpg", b"last")]
    shard = str(write_tar(tmp_path / "a.tar", members, format))
    scanned = open_dataset(shard)
    export_index(shard)
    assert Path(index_path(shard)).read_text().startswith("v1.1 6\n" if blank else "v1.2 6\n")
    os.unlink(f"{shard}.index.npz")
    import_index(shard, Access())
    with pytest.warns(UserWarning, match="the index of 1 shards came from DALI"):
        imported = open_dataset(shard)
    assert np.array_equal(imported.keys, scanned.keys) and imported.labels.tolist() == scanned.labels.tolist()
    assert imported.describe().endswith("headers of 1 shards unchecked (indexed by DALI)")
    assert "unchecked" not in scanned.describe()


def test_an_index_that_does_not_fit_is_refused(tmp_path):
    shard = str(write_tar(tmp_path / "a.tar", MEMBERS))
    path = export_index(shard)
    good = Path(path).read_text()
    for text, message in (
        ("v9 4\n", "no index of DALI's version"),
        ("\n".join(good.splitlines()[:-1]), "3 of 4 samples: cut short"),
        (good.replace("x.jpg 512", "x.jpg 513"), "said to lie at byte 513"),
        (good.replace("d/a.x.jpg", "d/b.x.jpg"), "an index of another shard"),
        (good.replace("c.cls\n", "\n"), "a line that is no index"),
        ("v1.2 0\n", "lists no sample"),
        (
            good.replace("v1.2 4", "v1.2 1").replace(good.splitlines()[2], "").replace(good.splitlines()[3], ""),
            "of 1 s",
        ),
    ):
        Path(path).write_text(text)
        with pytest.raises(TarError, match=message):
            import_index(shard, Access())
    Path(path).write_text(good)
    os.truncate(shard, os.path.getsize(shard) - 10240 + 6144)
    os.utime(path)
    with pytest.raises(TarError, match=r"cut short|where it cannot be|no member begins"):
        import_index(shard, Access())
    write_tar(shard, MEMBERS)
    os.utime(path, ns=(0, 0))
    with pytest.raises(TarError, match="older than its shard"):
        import_index(shard, Access())
