import pytest
from small_images import encoded, picture, write_tar

from a2mim.data import check_shards, match_labels, open_dataset
from a2mim.data.shards import label_members


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
    with pytest.warns(UserWarning, match=r"no labels are used: the class 'dog' is not in classes\.txt, which lists 1"):
        found = opened(tmp_path, *samples, classes=["cat"])
    assert found.labels.tolist() == [-1] * 4 and "is not in classes.txt" in found.describe()


def test_numbers_and_names_do_not_mix_and_only_judges_mind(tmp_path):
    with pytest.warns(UserWarning, match=r"x\.tar: no labels are used: some labels are numbers and others are class"):
        found = opened(tmp_path, ("a", {"cls": b"dog"}), ("b", {"cls": b"1"}))
    assert found.labels.tolist() == [-1, -1]
    with pytest.raises(ValueError, match=r"x\.tar cannot be judged: some labels are numbers"):
        match_labels(found, found)


ODD = {
    "a list": b"[1, 0, 1]",
    "names": b'["cat", "dog"]',
    "a share": b"0.73",
    "an object": b'{"id": 3}',
    "a long text": b'"%s"' % (b"a photograph of " * 20),
    "a truth value": b"true",
    "more than 64 bits": b"202311051234567890123",
    "a float beyond 64 bits": b"1e300",
    "infinity": b"Infinity",
    "5,000 digits": b"1" * 5000,
    "a lone surrogate": b'"\\ud800"',
    "nested": b"[" * 100_000,
    "empty": b'""',
    "half": b'"ca',
    "two lines": b'"cat\\ndog"',
}


@pytest.mark.parametrize("kind", ODD)
def test_a_label_that_is_no_class_is_no_label_is_counted_and_judges_refuse_it(tmp_path, kind):
    found = opened(tmp_path, ("a", {"json": b'{"label": %s}' % ODD[kind]}), ("b", {"cls": b"4"}))
    for _ in range(2):  # the second time from the cached index
        assert found.labels.tolist() == [-1, 4] and found.odd_labels == 1
        assert "1 labels left out that are no class" in found.describe()
        found = open_dataset(tmp_path / "x.tar")
    with pytest.raises(ValueError, match=r"1 of the 2 images in .*x\.tar have a label that is no class"):
        match_labels(found, found)
    assert "1 labels that are no class: all readable" in str(check_shards(tmp_path / "x.tar"))


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"two\nlines", b"9" * 30, b"x" * 5000, b"-7"])
def test_a_cls_that_is_no_class_is_counted(tmp_path, content):
    found = opened(tmp_path, ("a", {"cls": content}), ("b", {"cls": b"cat"}))
    assert found.labels.tolist() == [-1, 0] and found.odd_labels == 1


def test_a_json_that_lacks_a_label_or_says_null_is_no_odd_label(tmp_path):
    found = opened(tmp_path, ("a", {"json": b'{"label": null}'}), ("b", {"json": b"[1]"}), ("c", {"cls": b"-1"}))
    assert found.labels.tolist() == [-1, -1, -1] and found.odd_labels == 0


def test_the_label_of_a_json_of_megabytes_is_found_and_a_larger_one_is_counted(tmp_path, monkeypatch):
    sample = ("a", {"json": b'{"mask": "%s", "label": 3}' % (b"0" * 1_500_000)})
    assert opened(tmp_path, sample).labels.tolist() == [3]
    monkeypatch.setitem(label_members.LONGEST, "json", 1 << 20)
    found = opened(tmp_path, sample, name="y.tar")
    assert found.labels.tolist() == [-1] and found.odd_labels == 1


def test_decomposed_class_names_are_the_composed_ones(tmp_path):
    accents = "cafe\N{COMBINING ACUTE ACCENT}", "caf\N{LATIN SMALL LETTER E WITH ACUTE}"
    found = opened(tmp_path, *((str(k), {"cls": name.encode()}) for k, name in enumerate(accents)))
    assert found.labels.tolist() == [0, 0] and found.class_names == [accents[1]]
    (tmp_path / "classes.txt").write_text(f"the\n{accents[0]}\n\n", encoding="utf-8-sig")
    listed = open_dataset(tmp_path / "x.tar")
    assert listed.labels.tolist() == [1, 1] and listed.class_names == ["the", accents[1]]


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
    found = opened(tmp_path, ("./dog/1", {}), ("./cat/2", {}), (".//dog/3", {}))  # as `tar -C folder -c .` names them
    assert found.labels.tolist() == [1, 0, 1] and found.class_names == ["cat", "dog"]


def test_names_of_all_shards_get_one_numbering(tmp_path):
    opened(tmp_path, ("a", {"cls": b"dog"}), ("b", {"cls": b"cat"}), name="0.tar")
    opened(tmp_path, ("a", {"cls": b"ant"}), ("b", {"cls": b"dog"}), name="1.tar")
    for _ in range(2):  # the second time from the cached indices
        found = open_dataset(str(tmp_path / "{0,1}.tar"))
        assert found.labels.tolist() == [2, 1, 0, 2] and found.class_names == ["ant", "cat", "dog"]
