"""Segmentation on frozen maps: mIoU against torchmetrics, the oracle, ignored pixels, and all protocols end to end."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.functional.segmentation import mean_iou

from a2mim.data.masks import Masked, open_masked
from a2mim.evaluation import evaluate, read_results, seg_augmented, seg_knn, seg_linear
from a2mim.evaluation.miou import confusion, interval, scores
from a2mim.evaluation.seg_pictures import GAP, HEADER, IGNORED, SIDE
from a2mim.evaluation.segmentation import SegmentationTask, open_task, oracle, shares
from a2mim.protocols import read_protocol

IGNORE = 255


def test_miou_is_that_of_torchmetrics():
    generator = np.random.default_rng(0)
    truth, told = generator.integers(0, 5, (2, 4, 20, 20))
    counts = sum(confusion(p, t, 5, IGNORE) for p, t in zip(told, truth, strict=True))
    # over the set, not image by image: one long picture
    flat = [torch.from_numpy(x.reshape(1, -1, 20)) for x in (told, truth)]
    wanted = mean_iou(*flat, num_classes=5, input_format="index", per_class=False)
    assert scores(counts)["miou"] == pytest.approx(100 * wanted.item(), abs=1e-4)
    assert counts.dtype == np.int64 and counts.sum() == truth.size


def test_absent_classes_are_left_out_and_ignored_pixels_do_not_count():
    truth = np.array([[0, 0, 1, 1]])
    assert scores(confusion(truth, truth, 3, IGNORE))["miou"] == 100  # class 2 is absent
    told = np.array([[0, 0, 1, 0]])
    assert scores(confusion(told, truth, 3, IGNORE))["miou"] == pytest.approx(100 * (2 / 3 + 1 / 2) / 2)
    taken = np.array([[0, 2, 1, 1]])  # an absent class still hurts the class it was taken from
    found = scores(confusion(taken, truth, 3, IGNORE))
    assert (found["miou"], found["classes_averaged"], found["iou"][2]) == (75, 2, None)
    half = np.array([[0, 0, IGNORE, IGNORE]])
    assert scores(confusion(taken, half, 3, IGNORE))["pixel_accuracy"] == 50
    with pytest.raises(ValueError, match="every mask is ignored"):
        scores(confusion(truth, np.full_like(truth, IGNORE), 3, IGNORE))
    with pytest.raises(ValueError, match="class 3"):
        confusion(truth, truth + 2, 3, IGNORE)


def test_the_interval_holds_the_number():
    generator = np.random.default_rng(0)
    counts = np.stack([confusion(*generator.integers(0, 3, (2, 8, 8)), 3, IGNORE) for _ in range(30)])
    low, high = interval(counts)
    assert low < scores(counts.sum(0))["miou"] < high < low + 20


def test_soft_labels_are_shares_without_ignored_pixels():
    labels = np.array([[0, 1, 2, 2], [0, IGNORE, 2, IGNORE]])
    assert np.allclose(shares(labels, (1, 2), 3, IGNORE), [[2 / 3, 1 / 3, 0], [0, 0, 1]])
    assert (shares(np.full((2, 2), IGNORE), (1, 1), 3, IGNORE) == 0).all()
    assert (oracle(labels, (1, 2), 3, IGNORE) == [[0, 0, 2, 2], [0, 0, 2, 2]]).all()


class Known(SegmentationTask):
    """A task whose maps are made from the masks."""

    def __init__(self, masks, n_classes, feature, grid=(4, 4)):
        reader = SimpleNamespace(grid=grid, stride=4, channels=n_classes)
        blank = np.zeros((16, 16, 3), np.uint8)
        data = Masked("made", [f"{i}" for i in range(len(masks))], lambda i: (blank, masks[i]))
        encoder = SimpleNamespace(device=torch.device("cpu"))
        super().__init__(encoder, reader, (16, 16), data, data, n_classes, IGNORE, False, "bicubic")
        self.feature = feature

    def maps(self, dataset, rows, what):
        for i in rows:
            labels = dataset.read(int(i))[1]
            yield torch.from_numpy(self.feature(labels, self.reader.grid, self.n_classes, IGNORE)).float(), labels


def blocks(n=12, seed=0, ignored=False):
    """Masks of 4 × 4 cells of one class each, every fourth cell cut in two classes by a majority of three to one."""
    generator = np.random.default_rng(seed)
    masks = np.repeat(np.repeat(generator.integers(0, 3, (n, 4, 4)), 4, axis=1), 4, axis=2)
    masks[:, ::8, ::4] = 0
    if ignored:
        masks[:, :4] = IGNORE
    return masks


PROTOCOLS = [("seg-linear", seg_linear), ("seg-knn", seg_knn)]


def judge(task, name, module, **changes):
    c = read_protocol(name).constants | changes
    predictions, chosen = module.run(task, c)
    counts = sum(confusion(p, task.test.read(i)[1], task.n_classes, IGNORE) for i, p in enumerate(predictions))
    return scores(counts), chosen


@pytest.mark.parametrize(("name", "module"), PROTOCOLS)
@pytest.mark.parametrize("ignored", [False, True])
def test_the_label_map_as_feature_reaches_the_oracle(name, module, ignored):
    masks = blocks(ignored=ignored)
    task = Known(masks, 3, shares)
    found, _ = judge(task, name, module)
    ideal = scores(sum(confusion(oracle(m, (4, 4), 3, IGNORE), m, 3, IGNORE) for m in masks))
    floor = ideal["miou"] - (12 if name == "seg-linear" else 0.01)  # bilinear enlarging rounds the corners of cells
    assert found["miou"] >= floor > 60


@pytest.mark.parametrize(("name", "module"), PROTOCOLS)
def test_a_constant_map_answers_the_commonest_class(name, module):
    masks = blocks()
    task = Known(masks, 3, lambda *a: np.ones_like(shares(*a)))
    predictions, _ = module.run(task, read_protocol(name).constants | {"k_values": [30]})
    common = np.bincount(masks.ravel()).argmax()
    told = np.concatenate([p.ravel() for p in predictions])
    assert (told == common).all() if name == "seg-linear" else len(np.unique(told)) <= 16


@pytest.mark.parametrize(("name", "module"), PROTOCOLS)
def test_an_ignored_id_is_never_predicted(name, module):
    task = Known(blocks(ignored=True), 3, shares)
    predictions, _ = module.run(task, read_protocol(name).constants)
    assert all(p.min() >= 0 and p.max() < 3 for p in predictions)


def test_all_neighbours_vote_pixel_by_pixel():
    task = Known(blocks(1), 3, shares, grid=(1, 1))
    labels = torch.full((1, 3, 256), 0, dtype=torch.int16)
    labels[0, :2, :128] = 2  # two of three say 2 in the upper half
    labels[0, :, 255] = -1  # nobody knows: the commonest of the whole cell
    told = seg_knn.vote(task, labels, (16, 16))
    assert (told[:8] == 2).all() and (told[8:] == 0).all()


def test_l2_and_cosine_find_the_neighbours_of_a_slow_search():
    torch.manual_seed(0)
    features, queries = torch.randn(50, 6), torch.randn(7, 6)
    bank = seg_knn.Bank(features, torch.zeros(50, 1), torch.zeros(6), torch.ones(6))
    for distance, score in (
        ("l2", lambda q: -((features - q) ** 2).sum(1)),
        ("cosine", lambda q: torch.cosine_similarity(features, q[None])),
    ):
        rows = bank.neighbours(queries, 3, distance)
        assert torch.equal(rows, torch.stack([score(q).topk(3).indices for q in queries]))


def test_windows_cover_the_image_to_its_end():
    assert seg_augmented.starts(512, 512, 0.6666) == [0] and seg_augmented.starts(900, 512, 0.6666) == [0, 341, 388]


def test_a_crop_moves_image_and_mask_together():
    image = np.zeros((20, 30, 3), np.uint8)
    labels = np.zeros((20, 30), np.int64)
    image[5:15, 10:20], labels[5:15, 10:20] = 255, 1
    for seed in range(20):
        pixels, ids = seg_augmented.crop(image, labels, (16, 16), (0.5, 2.0), IGNORE, np.random.default_rng(seed))
        assert pixels.shape == (3, 16, 16) and ids.shape == (16, 16)
        judged = ids != IGNORE
        assert ((pixels[0] > 127) == (ids == 1))[judged].float().mean() > 0.85


@pytest.fixture
def folder(tmp_path):
    """Dark above, bright below, the border elsewhere in each image; the outermost row of pixels is ignored."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 10), ("test", 4)):
        for kind in ("images", "masks"):
            (tmp_path / "d" / split / kind).mkdir(parents=True)
        for i in range(count):
            border = generator.integers(8, 40)
            mask = (np.arange(48)[:, None] >= border).astype(np.uint8).repeat(40, 1)
            image = (60 + 140 * mask[..., None] + generator.integers(0, 40, (48, 40, 3))).astype(np.uint8)
            mask[0] = IGNORE
            Image.fromarray(image).save(tmp_path / "d" / split / "images" / f"{i}.png")
            Image.fromarray(mask).save(tmp_path / "d" / split / "masks" / f"{i}.png")
    return str(tmp_path / "d")


QUICK = {"seg-linear": {"epochs": 2, "least_steps": 200}, "seg-knn": {}}
QUICK["seg-linear-aug"] = {"steps": 12, "warmup_steps": 2, "batch_size": 4, "lr": 0.05}


@pytest.mark.parametrize("name", list(QUICK))
def test_every_protocol_runs_from_a_folder_to_results_and_pictures(folder, tmp_path, name):
    (result,) = evaluate(
        "resnet18", [name], folder, out=tmp_path / "out", overrides=QUICK[name], img_size=64, device="cpu"
    )
    assert result["metric"] == "mIoU %" and result["cells"] == [2, 2] and result["n_classes"] == 2
    low, high = result["interval"]
    assert low <= result["top1_last"] <= high and result["oracle"] > 50 and len(result["scores"]) == 4
    (written,) = read_results(tmp_path / "out")
    assert written["top1_last"] == result["top1_last"] and written["legend"][-1]["label"] == "ignored"
    assert [one["miou"] for one in written["pictures"]] == list(written["scores"].values())
    for one in written["pictures"]:
        with Image.open(tmp_path / "out" / one["file"]) as picture:
            assert picture.format == "PNG" and picture.width == 3 * SIDE + 2 * GAP
            corner, below = picture.getpixel((SIDE + GAP, HEADER)), picture.getpixel((SIDE + GAP, HEADER + SIDE - 1))
        assert corner == IGNORED and "#{:02x}{:02x}{:02x}".format(*below) == written["legend"][1]["colour"]
    if name != "seg-linear-aug":
        assert result["top1_last"] > 55


def test_without_a_test_set_a_fifth_is_split_off_said_once_and_listed(folder, tmp_path):
    said, train = [], f"{folder}/train"
    results = evaluate(
        *("test_resnet", ["seg-knn", "seg-linear"], train), img_size=64, device="cpu", out=tmp_path, say=said.append,
        overrides={f"seg-linear.{key}": value for key, value in QUICK["seg-linear"].items()},
    )  # fmt: skip
    assert [len(result["scores"]) for result in results] == [2, 2]
    (path,) = tmp_path.glob("test-split-*.tsv")
    listed = [line.split("\t") for line in path.read_text().splitlines()]
    names = open_masked(train).names
    assert len(said) == 1 and str(path) in said[0] and "2 of the 10 images" in said[0]
    assert len(listed) == 2 and all(names[int(row)] == name for row, name in listed)
    task = open_task("test_resnet", read_protocol("seg-knn"), train, img_size=64, device="cpu")
    assert sorted([*task.train.names, *task.test.names]) == sorted(names)
    assert task.test.names == [name for _, name in listed]
    assert (task.test.read(0)[1] == open_masked(train).read(int(listed[0][0]))[1]).all()


def test_a_single_image_with_a_mask_cannot_be_split(folder, tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / "one" / kind).mkdir(parents=True)
        (tmp_path / "one" / kind / "0.png").write_bytes(Path(f"{folder}/train/{kind}/0.png").read_bytes())
    with pytest.raises(ValueError, match="give --test-data"):
        evaluate("test_resnet", ["seg-knn"], str(tmp_path / "one"), img_size=64, device="cpu")


def test_a_finer_map_has_a_better_oracle(folder):
    results = [
        evaluate("resnet18", ["seg-knn"], folder, img_size=64, device="cpu", overrides={"map": m})[0]
        for m in ("auto", "layer2")
    ]
    assert results[1]["cells"] == [8, 8] and results[1]["oracle"] > results[0]["oracle"] + 5


def test_bad_masks_sizes_and_ids_are_one_sentence(folder, tmp_path):
    with pytest.raises(ValueError, match=r"--img-size 64"):
        evaluate("resnet18", ["seg-linear"], folder, img_size=70, device="cpu")
    Image.fromarray(np.full((48, 40), 7, np.uint8)).save(tmp_path / "d" / "test" / "masks" / "2.png")
    with pytest.raises(ValueError, match=r"2\.png holds class 7, and the training set has the classes 0 to 1"):
        evaluate("resnet18", ["seg-knn"], folder, img_size=64, device="cpu")


def test_ade20k_ids_are_shifted(folder, tmp_path):
    for path in (tmp_path / "d").rglob("masks/*.png"):
        ids = np.asarray(Image.open(path))
        Image.fromarray(np.where(ids == IGNORE, 0, ids + 1).astype(np.uint8)).save(path)
    (result,) = evaluate(
        "resnet18", ["seg-knn"], folder, img_size=64, device="cpu", overrides={"zero_is_ignored": True}
    )
    assert result["n_classes"] == 2 and result["top1_last"] > 55
