import pytest
from small_images import encoded, picture, write_tar

from a2mim.data import open_dataset


def opened(tmp_path, *samples, classes=None, name="x.tar"):
    """A shard of (key, {suffix: content}) samples, each with an image."""
    jpg, members = encoded(picture(0)), []
    for key, extra in samples:
        members += [(f"{key}.jpg", jpg), *((f"{key}.{suffix}", content) for suffix, content in extra.items())]
    if classes:
        (tmp_path / "classes.txt").write_text("\n".join(classes))
    return open_dataset(write_tar(tmp_path / name, members))


def test_numbers_come_from_cls_then_from_json(tmp_path):
    found = opened(
        tmp_path,
        *(("a", {"cls": b"3", "json": b'{"label": 9}'}), ("b", {"json": b'{"label": "4"}'})),
        *(("c", {"json": b'{"width": 2}', "txt": b"a caption"}), ("d", {"json": b'{"label": 5.0}'})),
    )
    assert found.labels.tolist() == [3, 4, -1, 5] and found.class_names is None


def test_class_names_are_numbered_in_order_or_as_listed(tmp_path):
    samples = [("a", {"cls": b"dog"}), ("b", {"json": b'{"label": "cat"}'}), ("c", {}), ("d", {"cls": b"dog\n"})]
    found = opened(tmp_path, *samples)
    assert found.labels.tolist() == [1, 0, -1, 1] and found.class_names == ["cat", "dog"]
    found = opened(tmp_path, *samples, classes=["dog", "cow", "cat"])
    assert found.labels.tolist() == [0, 2, -1, 0] and found.class_names == ["dog", "cow", "cat"]
    with pytest.raises(ValueError, match=r"x\.tar: the class 'dog' is not in classes\.txt, which lists 1"):
        opened(tmp_path, *samples, classes=["cat"])


def test_numbers_and_names_do_not_mix(tmp_path):
    with pytest.raises(ValueError, match=r"x\.tar: some labels are numbers and others are class names"):
        opened(tmp_path, ("a", {"cls": b"dog"}), ("b", {"cls": b"1"}))


def test_txt_is_a_label_when_all_are_numbers_or_listed_classes_and_else_a_caption(tmp_path):
    assert opened(tmp_path, ("a", {"txt": b"2"}), ("b", {"txt": b"0 "})).labels.tolist() == [2, 0]
    captions = [("a", {"txt": b"a red dog"}), ("b", {"txt": b"7"})]
    assert opened(tmp_path, *captions).labels.tolist() == [-1, -1]
    names = [("a", {"txt": b"dog"}), ("b", {"txt": b"cat"})]
    assert opened(tmp_path, *names).labels.tolist() == [-1, -1]
    assert opened(tmp_path, *names, classes=["cat", "dog"]).labels.tolist() == [1, 0]
    long = [("a", {"txt": b"dog " * 100}), ("b", {"txt": b"cat"})]
    assert opened(tmp_path, *long, classes=["cat", "dog"]).labels.tolist() == [-1, -1]


def test_folders_label_when_nothing_else_does_and_every_image_lies_in_one(tmp_path):
    found = opened(tmp_path, ("dog/1", {}), ("cat/2", {}), ("dog/3", {}))
    assert found.labels.tolist() == [1, 0, 1] and found.class_names == ["cat", "dog"]
    assert opened(tmp_path, ("dog/1", {}), ("cat/2", {}), ("3", {})).labels.tolist() == [-1, -1, -1]
    assert opened(tmp_path, ("dog/1", {}), ("dog/2", {})).labels.tolist() == [-1, -1]
    assert opened(tmp_path, ("dog/1", {"cls": b"5"}), ("cat/2", {})).labels.tolist() == [5, -1]


def test_names_of_all_shards_get_one_numbering(tmp_path):
    opened(tmp_path, ("a", {"cls": b"dog"}), ("b", {"cls": b"cat"}), name="0.tar")
    opened(tmp_path, ("a", {"cls": b"ant"}), ("b", {"cls": b"dog"}), name="1.tar")
    for _ in range(2):  # the second time from the cached indices
        found = open_dataset(str(tmp_path / "{0,1}.tar"))
        assert found.labels.tolist() == [2, 1, 0, 2] and found.class_names == ["ant", "cat", "dog"]
