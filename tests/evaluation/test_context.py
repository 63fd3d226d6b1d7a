"""A protocol from a source and two folders: whose labels, whose statistics, which images, and mistakes at the start."""

import numpy as np
import pytest
import torch
from PIL import Image

from a2mim.checkpoints import FORMAT
from a2mim.encoder import MaskedEncoder
from a2mim.evaluation.context import EvalContext
from a2mim.evaluation.runners import RUNNERS, check
from a2mim.export.timm_folder import write_timm_folder
from a2mim.protocols import read_protocol
from a2mim.weights.loading import load_encoder

SIZE = 32
PIXELS = {"mean": [0.5] * 3, "std": [0.2] * 3, "interpolation": "bilinear"}
CLASSES = {"cat": (0, 60), "dog": (90, 150), "fox": (190, 256)}  # ranges of noise


def class_folders(root, names, count=8, seed=0):
    generator = np.random.default_rng(seed)
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(count):
            noise = generator.integers(*CLASSES[name], (40, 40, 3), np.uint8)
            Image.fromarray(noise).save(root / name / f"{i:02d}.png")
    return str(root)


@pytest.fixture
def sets(tmp_path):
    """Three classes to train on, the last two of them to test on."""
    train = class_folders(tmp_path / "train", ("cat", "dog", "fox"))
    return train, class_folders(tmp_path / "test", ("dog", "fox"), 4, seed=1)


def context(sets, source="resnet18", **options):
    torch.manual_seed(0)
    return EvalContext(source, *sets, **{"device": "cpu", "img_size": SIZE} | options)


def run(made, name, **overrides):
    protocol = read_protocol(name, overrides)
    check(protocol)
    return RUNNERS[protocol.kind](made, protocol)[0]


def test_classes_are_matched_by_name_however_each_set_numbers_them(sets):
    result = run(context(sets), "dino-knn", k=3)
    assert result["top1"] == 100 == result["top1_last"] and result["n_test"] == 8
    assert (result["pooling"], result["unreadable"]) == ("avg", {})


@pytest.mark.parametrize(
    ("name", "overrides"), [("dino-knn", {"k": 3}), ("linear-cached", {"epochs": 2}), ("dino-linear", {"epochs": 1})]
)
def test_unreadable_images_are_counted_and_not_judged(sets, tmp_path, name, overrides):
    (tmp_path / "train" / "cat" / "03.png").write_bytes(b"<html>")
    (tmp_path / "test" / "dog" / "00.png").write_bytes(b"")
    result = run(context(sets, calibrate=False), name, **overrides)
    assert result["unreadable"] == {"not an image": 1, "empty": 1} and result["n_test"] == 7
    assert result["correct"].tolist()[0] == -1 and (result["correct"][1:] >= 0).all()


def test_a_checkpoint_is_calibrated_and_an_exported_folder_is_taken_as_it_is(sets, tmp_path):
    encoder = MaskedEncoder("resnet18", img_size=SIZE)
    state = {f"encoder.{key}": value for key, value in encoder.state_dict().items()}
    run, exported = tmp_path / "run", tmp_path / "exported"
    (run / "checkpoints").mkdir(parents=True)
    exported.mkdir()
    path, meta = run / "checkpoints" / "step_000001.pth", {"encoder": encoder.arguments(), "pixels": PIXELS}
    torch.save({"format": FORMAT, "state_dict": state, "meta": meta}, path)
    write_timm_folder(encoder.model, encoder.arguments(), PIXELS | {"img_size": [SIZE, SIZE]}, exported, "mit")
    stored = load_encoder(exported)[0].bn1.running_mean
    for source, seen in ((path, 24), (run, 24), ("resnet18", 24), (exported, 0)):
        made = context(sets, source)
        assert made.about({})["batchnorm_calibrated_on"] == seen, source
        assert torch.equal(made.model.bn1.running_mean, stored) == (seen == 0)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"img_size": 0}, "img_size=0 must be at least 1"),
        ({"num_workers": -1}, "num_workers=-1 must be at least 0"),
        ({"device": "foo"}, "device 'foo' is not known"),
    ],
)
def test_settings_out_of_range_are_refused_before_anything_is_read(wrong, words):
    with pytest.raises(ValueError, match=words):
        context(("nowhere", "nowhere"), "nowhere/run", **wrong)


def test_constants_out_of_range_are_refused_before_features_are_taken():
    for name, wrong in (
        ("dino-knn", {"k": 0}),
        ("dino-knn", {"temperature": 0.0}),
        ("dino-knn", {"also_k": [5, 0]}),
        ("dino-linear", {"epochs": 0}),
        ("linear-cached", {"epochs": 0}),
        ("mae-linear", {"batch_size": 0}),
        ("logreg", {"c_values": 0}),
    ):
        with pytest.raises(ValueError, match="must be at least 1"):
            check(read_protocol(name, wrong))
    for name, wrong, words in (
        ("dinov2-linear", {"train_view": "both"}, "must be crops or center"),
        ("dinov2-linear", {"base_lrs": []}, "at least one rate"),
        ("logreg", {"held_out": 1.0}, "between 0 and 1"),
        ("low-shot", {"subsets": ["0%"]}, "must be a share"),
    ):
        with pytest.raises(ValueError, match=words):
            check(read_protocol(name, wrong))


def test_judging_on_the_training_images_is_warned_of(sets):
    with pytest.warns(UserWarning, match="is also the training set"):
        context((sets[0], sets[0]), calibrate=False)
