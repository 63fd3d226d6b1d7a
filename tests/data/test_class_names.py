import shutil

import pytest
from small_images import encoded, picture, write_tar

from a2mim.data import match_labels, open_dataset


def class_folders(root, first=0, **counts):
    """A folder a class with so many images, each another."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            (root / name / f"{i}.png").write_bytes(encoded(picture(first + i), "png"))
            first += 1
    return open_dataset(root)


def test_test_labels_are_numbered_as_the_training_set_numbers_their_names(tmp_path):
    train = class_folders(tmp_path / "train", cat=2, dog=2, fox=2)
    test = class_folders(tmp_path / "test", 50, dog=2, fox=1)
    matched = match_labels(train, test)
    assert test.labels.tolist() == [0, 0, 1]
    assert matched.labels.tolist() == [1, 1, 2] and matched.class_names == ["cat", "dog", "fox"]
    assert matched.fingerprint != test.fingerprint
    assert (matched.read(2) == test.read(2)).all() and matched.title == test.title


def test_a_class_that_training_does_not_have_is_named_and_numbered_behind_the_others(tmp_path):
    train = class_folders(tmp_path / "train", cat=2, dog=2)
    test = class_folders(tmp_path / "test", 50, bear=1, dog=2, wolf=1)
    with pytest.warns(UserWarning, match="does not have: bear, wolf; their images are counted and never right"):
        matched = match_labels(train, test)
    assert matched.labels.tolist() == [2, 1, 1, 3] and matched.class_names == ["cat", "dog", "bear", "wolf"]
    assert train.class_names == ["cat", "dog"]


def test_sets_without_a_class_in_common_are_refused(tmp_path):
    train = class_folders(tmp_path / "train", cat=2, dog=2)
    with pytest.raises(ValueError, match="no class in common: the test set has lynx, wolf, the training set cat, dog"):
        match_labels(train, class_folders(tmp_path / "test", 50, lynx=2, wolf=1))


@pytest.mark.parametrize("named_first", [True, False])
def test_names_against_numbers_are_matched_by_number_and_the_mapping_is_said(tmp_path, named_first):
    named = class_folders(tmp_path / "named", b=2, a=2)
    members = [
        (f"{i}.{end}", data)
        for i in range(3)
        for end, data in (("png", encoded(picture(i), "png")), ("cls", b"%d" % i))
    ]
    write_tar(tmp_path / "x.tar", members)
    numbered = open_dataset(tmp_path / "x.tar")
    sets = (named, numbered) if named_first else (numbered, named)
    with pytest.warns(UserWarning, match="x.tar has no class names.*by number.*: 0 = a, 1 = b; its labels go up to 2"):
        assert match_labels(*sets) is sets[1]


def test_numbers_against_numbers_are_no_news(dataset):
    dataset.class_names = None
    other = open_dataset("photos", "test")
    other.class_names = None
    assert match_labels(dataset, other) is other


def test_images_without_a_label_stay_without_one(tmp_path):
    (tmp_path / "x").mkdir()
    members = [("a.png", encoded(picture(0), "png")), ("b.png", encoded(picture(1), "png")), ("b.cls", b"0")]
    write_tar(tmp_path / "x" / "x.tar", members)
    (tmp_path / "x" / "classes.txt").write_text("fox\n")
    test = open_dataset(tmp_path / "x" / "x.tar")
    assert match_labels(class_folders(tmp_path / "train", cat=2, fox=2), test).labels.tolist() == [-1, 1]


@pytest.mark.parametrize("unlabelled", ["train", "test"])
def test_a_set_without_any_label_is_refused(tmp_path, unlabelled):
    counts = {name: {"a": 2} if name == unlabelled else {"a": 2, "b": 2} for name in ("train", "test")}
    sets = {name: class_folders(tmp_path / name, **counts[name]) for name in counts}
    with pytest.raises(ValueError, match=rf"none of the 2 images in .*{unlabelled} has a label"):
        match_labels(**sets)


def test_names_that_stand_for_two_classes_cannot_be_matched(tmp_path):
    train = class_folders(tmp_path / "train", cat=1, crane=1)
    test = class_folders(tmp_path / "test", 9, crane=2, dog=1)
    train.class_names, test.class_names = ["crane", "cat", "crane"], ["crane", "cat"]
    with pytest.raises(ValueError, match="crane names more than one"):
        match_labels(train, test)
    test.class_names = train.class_names[:]
    assert match_labels(train, test) is test


def test_judging_on_the_training_images_is_warned_of_wherever_their_copy_lies(tmp_path):
    train = class_folders(tmp_path / "train", a=2, b=2)
    shutil.copytree(tmp_path / "train", tmp_path / "copy")
    with pytest.warns(UserWarning, match="copy is also the training set"):
        match_labels(train, open_dataset(tmp_path / "copy"))
    match_labels(train, class_folders(tmp_path / "other", 70, a=2, b=2))  # the same names, other images: no warning


def test_a_list_of_one_source_is_that_source(class_folder, shards):
    assert open_dataset([class_folder]).describe() == open_dataset(class_folder).describe()
    assert open_dataset((shards,)).describe() == open_dataset(shards).describe()
    assert open_dataset(["photos"], "test").fingerprint == open_dataset("photos", "test").fingerprint


def test_folders_and_photographs_are_not_joined_with_others(class_folder, shards):
    for source in ([class_folder, shards], [shards, "photos"]):
        with pytest.raises(ValueError, match="cannot be joined with others"):
            open_dataset(source)
