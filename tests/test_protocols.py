"""Protocols as data: what a name stands for, what may be changed, and that a change is told."""

import pytest

from a2mim.protocols import FOLDER, KINDS, protocol_names, read_protocol

NAMES = (
    *("dino-knn", "dino-linear", "dinov2-linear", "mae-linear", "logreg", "low-shot", "mae-finetune"),
    *("simmim-finetune", "rsb-a2", "rsb-a3", "spark-finetune", "davis", "copydays"),
)


def test_every_protocol_of_the_list_is_there_with_its_sources():
    assert set(NAMES) <= set(protocol_names())
    for name in protocol_names():
        protocol = read_protocol(name)
        assert protocol.kind in KINDS and protocol.sources and protocol.summary and protocol.constants, name


@pytest.mark.parametrize(
    ("name", "constants"),
    [
        ("dino-knn", {"k": 20, "temperature": 0.07, "interpolation": "bicubic"}),
        ("dinov2-linear", {"epochs": 10, "epoch_length": 1250, "batch_size": 128, "blocks": [1, 4]}),
        ("mae-linear", {"epochs": 90, "warmup_epochs": 10, "batch_size": 16384, "trust_coefficient": 0.001}),
        ("logreg", {"c_values": 45, "c_powers": [-6.0, 5.0]}),
        ("mae-finetune", {"base_lr": 5e-4, "layer_decay": 0.65, "mixup": 0.8, "epochs": 100, "head_init_std": 2e-5}),
        ("rsb-a2", {"base_lr": 5e-3, "base_batch": 2048, "repeats": 3, "loss": "bce", "crop_pct": 0.95}),
        ("rsb-a3", {"base_lr": 8e-3, "train_size": 160, "repeats": 1, "drop_path_rate": 0.0, "epochs": 100}),
        ("spark-finetune", {"base_lr": 2e-3, "layer_decay": 0.7, "ema_decay": 0.9999}),
        ("davis", {"previous_frames": 7, "radius": 12, "sources_kept": 5, "temperature": 0.1}),
        ("copydays", {"img_size": 320, "gem_power": 4.0}),
    ],
)
def test_constants_are_those_of_the_papers(name, constants):
    found = read_protocol(name).constants
    assert {key: found[key] for key in constants} == constants


def test_the_grid_of_dinov2_has_52_heads():
    constants = read_protocol("dinov2-linear").constants
    assert len(constants["base_lrs"]) * len(constants["blocks"]) * 2 == 52
    assert (min(constants["base_lrs"]), max(constants["base_lrs"])) == (1e-5, 0.1)


def test_a_change_is_in_the_title_the_overrides_and_the_hash():
    plain, changed = read_protocol("dino-knn"), read_protocol("dino-knn", {"k": "10"})
    assert changed.constants["k"] == 10 and changed.overridden == {"k": [20, 10]}
    assert changed.title == "dino-knn with k=10" and changed.hash != plain.hash
    same = read_protocol("dino-knn", {"k": 20, "temperature": "0.07"})
    assert (same.hash, same.title, same.overridden) == (plain.hash, "dino-knn", {})


def test_values_may_be_given_as_text_of_their_own_type():
    changed = read_protocol("dino-linear", {"base_lrs": "0.1, 0.3", "held_out": "1e-1", "blocks": "2"}).constants
    assert changed["base_lrs"] == [0.1, 0.3] and changed["held_out"] == 0.1 and changed["blocks"] == 2
    assert read_protocol("copydays", {"with_class_token": "false"}).constants["with_class_token"] is False


def test_a_variant_takes_its_own_constants_and_counts_in_the_hash():
    base, large = read_protocol("mae-finetune"), read_protocol("mae-finetune", {"variant": "large"})
    assert (large.constants["epochs"], large.constants["layer_decay"], large.constants["base_lr"]) == (50, 0.75, 1e-3)
    assert large.overridden == {} and large.hash != base.hash
    assert read_protocol("mae-finetune", {"variant": "base"}).hash == base.hash
    with pytest.raises(ValueError, match="choose base, large"):
        read_protocol("mae-finetune", {"variant": "huge"})


def test_a_file_of_ones_own_is_a_protocol(tmp_path):
    path = tmp_path / "my-knn.toml"
    path.write_text((FOLDER / "dino-knn.toml").read_text().replace("k = 20 ", "k = 7 "))
    protocol = read_protocol(str(path))
    assert protocol.name == "my-knn" and protocol.constants["k"] == 7
    assert protocol.hash == read_protocol("dino-knn", {"k": 7}).hash


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("dino-kn", {}, "did you mean dino-knn"),
        ("dino-knn", {"temprature": 1.0}, "did you mean temperature"),
        ("dino-knn", {"k": "many"}, "of type int"),
        ("dino-knn", {"k": 2.5}, "of type int"),
        ("dino-linear", {"epochs": True}, "of type int"),
    ],
)
def test_mistakes_are_named_with_the_nearest_that_exists(name, overrides, words):
    with pytest.raises(ValueError, match=words) as caught:
        read_protocol(name, overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [("kind = ", "is not TOML"), ("kind = 'knn'", "needs"), ("knid = 'knn'\n[constants]", "unknown key 'knid'")],
)
def test_a_file_that_is_no_protocol_is_refused(tmp_path, content, words):
    path = tmp_path / "mine.toml"
    path.write_text(content)
    with pytest.raises(ValueError, match=words):
        read_protocol(str(path))
    with pytest.raises(FileNotFoundError, match=r"other\.toml does not exist"):
        read_protocol(str(tmp_path / "other.toml"))
