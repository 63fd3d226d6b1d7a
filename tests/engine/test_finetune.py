"""Fine-tuning end to end: on the loop of pre-training, from its own source, judged as it says."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from resumed_runs import assert_same_run, kill_after, log_of
from two_processes import run_pair

from a2mim.batchnorm import calibrate_batchnorm
from a2mim.checkpoints import list_checkpoints
from a2mim.cli import main
from a2mim.data import EvalLoader, match_labels, open_dataset, open_stream
from a2mim.engine.config import load_config
from a2mim.engine.finetune_settings import FinetuneSettings, Labels
from a2mim.engine.labelled_data import choose_rows
from a2mim.engine.run import finetune
from a2mim.evaluation.calibration import calibration_loader
from a2mim.evaluation.results import read_results
from a2mim.pixels import normalize
from a2mim.weights.loading import load_encoder

RECIPE = """
classifier = dict(drop_path_rate=0.2, pooling="avg", norm="after")
data = dict(img_size=32)
augment = dict(auto_augment="rand-m9-mstd0.5-inc1", erasing=0.5, repeats=2)
mix = dict(mixup=0.8, cutmix=1.0, smoothing=0.1)
global_batch_size = 8
optimizer = dict(base_lr=0.05, layer_decay=0.8)
schedule = dict(epochs=3, warmup_epochs=1)
clip_grad = 5.0
checkpoint = dict(every_steps=1, keep=100)
log = dict(every_steps=1)
export = []
laptop = {"schedule.epochs": 1, "schedule.warmup_epochs": 0}
"""
PLAIN = {
    "augment.auto_augment": "",
    "augment.erasing": 0.0,
    "augment.repeats": 1,
    "mix.mixup": 0.0,
    "mix.cutmix": 0.0,
}
SHORT = {"schedule.epochs": 1, "schedule.warmup_epochs": 0}


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def run(recipe, labelled, tmp_path):
    """run("name", **overrides): fine-tunes in tmp_path/name and returns (its folder, its summary)."""

    def start(name, source="test_vit", **arguments):
        arguments = {"data": labelled, "device": "cpu", "num_workers": 0} | arguments
        return tmp_path / name, finetune(recipe, source, work_dir=tmp_path / name, **arguments)

    return start


def results_of(folder):
    return read_results(folder)[0]


@pytest.mark.parametrize(
    ("source", "overrides", "again"),
    [
        ("test_vit", {"ema": 0.1, "accumulate": 2}, {}),
        ("test_resnet", {"loss.type": "bce", "loss.threshold": 0.2, "optimizer.type": "lamb"}, {"num_workers": 2}),
    ],
    ids=["ema+accumulate", "bce+lamb, then workers"],
)
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(run, tmp_path, source, overrides, again):
    if source == "test_resnet":
        overrides = overrides | {"classifier.pooling": "default"}
    whole, summary = run("whole", source, **overrides)
    kill_after(whole, 4, tmp_path / "resumed")  # in the middle of the second epoch
    resumed, other = run("resumed", None, resume=True, **again)  # the source is not asked for again
    assert_same_run(whole, resumed)
    assert other["result"] == summary["result"]
    first, second = results_of(whole), results_of(resumed)
    assert {**first, "settings": 0} == {**second, "settings": 0}


def test_another_number_of_workers_trains_the_same_classifier(run):
    here, _ = run("here", **SHORT)
    there, _ = run("there", num_workers=2, **SHORT)
    assert log_of(here) == log_of(there)


def test_it_learns_what_colours_tell_and_hands_over_a_classifier_that_answers_alike(run, labelled):
    learn = PLAIN | {
        "schedule.epochs": 8,
        "classifier.drop_path_rate": 0.0,
        "clip_grad": None,
        "optimizer.base_lr": 0.1,
    }
    folder, summary = run("whole", export=["timm"], **learn)
    result = results_of(folder)
    assert summary["result"]["top1_last"] == result["top1_last"] >= 75
    assert result["top1_best"] == max(line["test_top1"] for line in result["history"])
    classifier = timm.create_model(f"local-dir:{folder / 'classifier'}", pretrained=True).eval()
    assert classifier.num_classes == 3
    train, test = (open_dataset(labelled, split) for split in ("train", "test"))
    answers = []
    for batch in EvalLoader(match_labels(train, test), 32, 37, "bicubic"):
        with torch.no_grad():
            found = classifier(normalize(batch["images"])).argmax(dim=1)
        answers += (found == batch["labels"]).int().tolist()
    assert "".join(map(str, answers)) == result["correct"]
    assert json.loads((folder / "encoder" / "receipt.json").read_text())["keys"]["missing"] == []
    encoder, preprocessing = load_encoder(folder)
    assert preprocessing["img_size"] == [32, 32]
    whole = classifier.state_dict()
    assert all(torch.equal(value, whole[key]) for key, value in encoder.state_dict().items())


def test_it_starts_from_the_source_and_from_nothing_else(run, tmp_path):
    source = timm.create_model("test_vit", num_classes=0, img_size=32)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    still = PLAIN | SHORT | {"optimizer.base_lr": 0.0, "schedule.min_lr": 0.0, "optimizer.weight_decay": 0.0}
    folder, _ = run("still", f"test_vit:{tmp_path / 'weights.pth'}", **{"classifier.norm": "default"}, **still)
    trained = torch.load(list_checkpoints(folder / "checkpoints")[-1], weights_only=True)["state_dict"]
    for key, value in source.state_dict().items():
        assert torch.equal(value, trained[f"model.{key}"]), key
    del trained["model.head.weight"], trained["model.head.bias"]
    assert set(trained) == {f"model.{key}" for key in source.state_dict()}


def test_an_encoder_is_read_from_a_checkpoint_of_fine_tuning_and_may_be_trained_on(run):
    folder, _ = run("first", **PLAIN, **SHORT)
    path = list_checkpoints(folder / "checkpoints")[-1]
    encoder, preprocessing = load_encoder(path)
    state = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(value, state[f"model.{key}"]) for key, value in encoder.state_dict().items())
    assert preprocessing["img_size"] == [32, 32]
    _, again = run("second", str(folder), **PLAIN, **SHORT)
    assert again["status"] == "finished"


def test_few_labels_are_balanced_listed_and_recorded(run):
    folder, summary = run("few", **PLAIN, **SHORT, **{"labels.subset": "3"})
    rows = [line.split("\t") for line in (folder / "train_images.tsv").read_text().splitlines()]
    assert sorted(label for _, label, _ in rows) == ["0"] * 3 + ["1"] * 3 + ["2"] * 3
    assert summary["data"]["images"] == results_of(folder)["n_train"] == 9


def test_xcit_s_class_attention_is_frozen_where_averaging_does_not_read_it(run):
    short = PLAIN | SHORT | {"global_batch_size": 24}
    _, summary = run("xcit", "xcit_nano_12_p16_224", **short)
    frozen = summary["classifier"]["frozen"]
    assert any("cls_attn_blocks" in name for name in frozen)
    assert not any(name.startswith(("blocks.", "head", "patch_embed")) for name in frozen)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "fine-tuning needs a SOURCE"),
        (["test_vit", "--cfg-options", "global_batch_size=7"], "even number of images in a micro-batch, not 7"),
        (["test_vit", "--cfg-options", "classifier.pooling=median"], "does not take classifier.pooling='median'"),
        (["vgg11", "--cfg-options", "classifier.pooling=default"], "has no stochastic depth"),
        (["test_vitt"], "nearest names: test_vit"),
        (["test_vit", "--cfg-options", "augment.auto_augment=rand-x9"], "is not understood by timm"),
        (["test_vit", "--cfg-options", "data.in_chans=1"], "1 channels of 8 bits"),
        (["test_vit", "--cfg-options", "global_batch_size=64"], "lower global_batch_size or give more images"),
        (["test_vit", "--label-fraction", "1.5"], "--label-fraction 1.5 must be above 0"),
        (["test_vit", "--cfg-options", "protocol=dino-knn"], "judges frozen features"),
        (["test_vit", "--cfg-options", "loss.threshold=0.2"], "is for loss.type='bce' only"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(recipe, labelled, tmp_path, capsys, arguments, message):
    folder = tmp_path / "run"
    code = main(
        ["finetune", str(recipe), *arguments[:1], "--data", str(labelled), "--work-dir", str(folder), *arguments[1:]]
    )
    printed = capsys.readouterr().err.strip()
    assert code == 1, printed
    assert message in printed
    assert printed.startswith("error: ") and printed.count("\n") == 0
    assert not folder.exists()


def test_data_that_cannot_be_learned_from_is_refused(run, images, labelled):
    with pytest.raises(ValueError, match="fine-tuning needs labels"):
        run("unlabelled", data=images)
    alike = open_dataset(labelled, "train")
    alike.labels[:] = 1
    with pytest.raises(ValueError, match="nothing to tell apart"):
        choose_rows(alike, Labels(), alike)


def test_a_recipe_of_the_other_command_is_recognised(recipe):
    with pytest.raises(ValueError, match="recipe for a2mim finetune, not pretrain"):
        load_config(recipe)
    with pytest.raises(ValueError, match="recipe for a2mim pretrain, not finetune"):
        load_config(Path(__file__).parents[2] / "configs" / "a2mim_xcit.py", kind=FinetuneSettings)


@pytest.mark.slow
def test_two_processes_train_one_classifier_judge_it_together_and_resume_exactly(run, recipe, labelled, tmp_path):
    def start(*more):
        run_pair(
            *("-m", "a2mim.cli", "finetune", recipe, "test_resnet", "--data", labelled),
            *("--work-dir", tmp_path / "pair", "--device", "cpu", "--num-workers", "0", *more),
        )
        saved = torch.load(list_checkpoints(tmp_path / "pair" / "checkpoints")[-1], weights_only=True)
        return saved, results_of(tmp_path / "pair")

    options = ["--cfg-options", "classifier.pooling=default", "accumulate=2", "schedule.epochs=2"]
    whole, result = start(*options)
    assert result["n_test"] == 12
    for path in list_checkpoints(tmp_path / "pair" / "checkpoints")[4:]:
        path.unlink()
    resumed, again = start("--resume")
    for key, value in whole["state_dict"].items():  # running statistics too: the processes' are averaged
        assert torch.equal(value, resumed["state_dict"][key]), key
    assert again["correct"] == result["correct"]
    assert again["history"] == result["history"]


def test_how_pixels_are_read_is_a_setting_that_a_resumed_run_keeps(recipe, labelled, tmp_path):
    folder, more = tmp_path / "run", ["--bits", "16", "--exif", "--value-range", "0", "2"]
    options = [f"{key}={value!r}" for key, value in (PLAIN | SHORT).items()]
    common = ["finetune", str(recipe), "test_vit", "--data", str(labelled), "--device", "cpu"]
    common += ["--work-dir", str(folder)]
    assert main([*common, *more, "--cfg-options", *options]) == 0
    list_checkpoints(folder / "checkpoints")[-1].unlink()
    assert main([*common, "--resume"]) == 0
    read = load_config(folder / "config.py", kind=FinetuneSettings).data
    assert (read.bits, read.exif, read.value_range) == (16, True, (0.0, 2.0))


def test_test_images_without_a_label_are_not_judged(run, labelled):
    train, test = open_dataset(labelled, "train"), open_dataset(labelled, "test")
    test.labels[::3] = -1
    folder, _ = run("some", data=train, test_data=test, **PLAIN, **SHORT)
    assert results_of(folder)["n_test"] == 8


def test_a_resumed_run_names_the_source_that_it_began_with(run, capsys):
    folder, _ = run("begun", "test_vit", **PLAIN, **SHORT)
    run("begun", "test_resnet", resume=True)
    assert "changed  not the source: the run has begun, from test_vit" in capsys.readouterr().out
    assert read_results(folder)[-1]["encoder"] == "test_vit"


def test_a_classifier_goes_on_with_the_classes_that_it_has(run, labelled, tmp_path):
    """With the next epoch as with this one: a class that comes before the others would shift what the outputs mean."""
    folder, _ = run("classes", **PLAIN, **SHORT)
    list_checkpoints(folder / "checkpoints")[-1].unlink()
    fewer, other = tmp_path / "fewer", tmp_path / "other"
    shutil.copytree(labelled, fewer)
    shutil.copytree(labelled, other)
    (other / "train" / "c").rename(other / "train" / "A")
    (other / "test" / "c").rename(other / "test" / "A")
    with pytest.raises(ValueError, match=r"3 classes \(a, b, c\) and the data have 3 \(A, a, b\)"):
        run("classes", data=other, resume=True, next_epoch=True)
    next((fewer / "train" / "a").iterdir()).unlink()
    _, summary = run("classes", data=fewer, resume=True, next_epoch=True, **{"schedule.epochs": 2})
    history = read_results(folder)[-1]["history"]
    assert [line["epoch"] for line in history] == [2.0]
    assert summary["steps"] == 4  # two of the first epoch, two of the next, which has but 23 images


class Pipeline:
    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


def test_a_pipeline_is_not_cut_to_a_few_labels():
    items = [(np.zeros((8, 8, 3), np.uint8), k % 2) for k in range(4)]
    train = open_stream(Pipeline(items), 4)
    assert len(choose_rows(train, Labels(), train)) == 4
    with pytest.raises(ValueError, match="a pipeline is trained on whole"):
        choose_rows(train, Labels(subset="1"), train)
    with pytest.raises(ValueError, match="every item needs a label"):
        few = open_stream(Pipeline([*items, items[0][0]]), 5)
        choose_rows(few, Labels(), few)


def test_averaged_weights_are_judged_and_handed_over_with_statistics_of_their_own(run, labelled):
    changes = {"classifier.pooling": "default", "classifier.norm": "default", "classifier.drop_path_rate": 0.0}
    folder, summary = run("averaged", "test_resnet", ema=0.05, export=["timm"], **changes, **SHORT)
    raw = torch.load(list_checkpoints(folder / "checkpoints")[-1], weights_only=True)["ema_state_dict"]
    model = timm.create_model(f"local-dir:{summary['classifier_folder']}", pretrained=True).eval()
    handed = {key: value.clone() for key, value in model.state_dict().items()}
    pixels = json.loads((folder / "classifier" / "config.json").read_text())["pretrained_cfg"]
    loader = calibration_loader(open_dataset(labelled, "train"), 32, 37, "bicubic")
    calibrate_batchnorm(model, (normalize(b["images"], pixels["mean"], pixels["std"]) for b in loader))
    statistics = [key for key in handed if "running_" in key]
    for key in statistics:
        torch.testing.assert_close(handed[key], model.state_dict()[key], rtol=1e-4, atol=1e-5)
    assert not any(torch.equal(handed[key], raw[f"module.model.{key}"]) for key in statistics)


def test_a_network_of_fixed_size_is_judged_at_another_size_by_resampled_positions(run):
    changes = {"data.test_size": 48, "classifier.norm": "default"}
    _, summary = run("larger", "test_vit", **PLAIN, **SHORT, **changes)
    assert summary["result"]["n_test"] == 12


def test_a_test_size_that_the_network_cannot_take_is_refused_before_the_first_step(run, tmp_path):
    with pytest.raises(ValueError, match=r"cannot be judged on images of 40 px .* set data.test_size to data.img_size"):
        run("odd", "test_vit", **PLAIN, **SHORT, **{"data.test_size": 40, "classifier.norm": "default"})
    assert not list((tmp_path / "odd").glob("checkpoints/*"))


def test_a_micro_batch_of_one_image_is_one_sentence(run):
    changes = {"accumulate": 8, "classifier.pooling": "default", "classifier.norm": "default"}
    with pytest.raises(ValueError, match="a micro-batch of 1 image is too few for this network's BatchNorm"):
        run("one", "resnet10t", **PLAIN, **SHORT, **changes)
