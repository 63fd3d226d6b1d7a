import io

import numpy as np
import pytest
import torch
from PIL import Image
from small_images import encoded, picture
from torch.utils.data import Dataset, IterableDataset

from a2mim.data import StreamLoader, TrainLoader, match_labels, open_dataset, open_stream
from a2mim.data.decode import REDUCED
from a2mim.data.faults import UnreadableData
from a2mim.data.pixel_format import UnreadableImage


class Pictures(Dataset):
    """40 numbered pictures in a form of one's own."""

    classes = ("even", "odd")

    def __init__(self, form=lambda pixels, i: (pixels, i % 2), bad=()):
        self.form, self.bad, self.targets = form, bad, [i % 2 for i in range(40)]

    def __len__(self):
        return 40

    def __getitem__(self, i):
        if i in self.bad:
            raise KeyError("their own trouble")
        return self.form(picture(i), i)


class Pipeline(IterableDataset):
    """Endless work for one worker or several; `asked` counts how often it began."""

    def __init__(self, items, asked=None):
        self.items, self.asked = items, [] if asked is None else asked

    def __iter__(self):
        self.asked.append(1)
        worker = torch.utils.data.get_worker_info()
        yield from self.items[worker.id :: worker.num_workers] if worker else self.items


@pytest.mark.parametrize(
    "form",
    [
        lambda pixels, i: pixels,
        lambda pixels, i: (Image.fromarray(pixels), i % 2),
        lambda pixels, i: {"image": torch.from_numpy(pixels.copy()).permute(2, 0, 1), "label": torch.tensor(i % 2)},
        lambda pixels, i: {"png": encoded(pixels, "png"), "cls": str(i % 2).encode()},
        lambda pixels, i: [pixels.astype(np.uint16) * np.uint16(257), i % 2, "more"],
    ],
)
def test_a_map_style_data_set_is_trained_on_like_any_other(form):
    dataset = open_dataset(Pictures(form), bits=8)
    assert len(dataset) == 40 and dataset.labels.tolist() == [0, 1] * 20
    assert np.array_equal(dataset.read(7), picture(7)) and dataset.name(7) == "Pictures[7]"
    assert "taken to be the same each time" in dataset.describe()
    whole, parts = list(TrainLoader(dataset, 16, 8)), list(TrainLoader(dataset, 16, 8, num_workers=1))
    assert all(torch.equal(a["images"], b["images"]) for a, b in zip(whole, parts, strict=True))


def test_what_their_code_raises_is_counted_as_an_unreadable_image():
    train = TrainLoader(open_dataset(Pictures(bad=(3, 5))), 16, 8)
    shown = torch.cat([batch["ids"] for batch in train])
    assert len(shown) == 40 and not {3, 5} & set(shown.tolist())
    assert train.faults["no item"] >= 2 and "their own trouble" in train.faults.names[0]


@pytest.mark.parametrize(
    "form, message",
    [
        (lambda pixels, i: torch.rand(3, 8, 8), r"an image is Tensor of float32 \(8, 8, 3\).*without ToTensor"),
        (lambda pixels, i: {"picture": pixels, "label": 1}, "has picture, label and no image; call it 'image'"),
        (lambda pixels, i: "a path", "an image is str of"),
    ],
)
def test_items_of_another_form_are_one_sentence_before_anything_starts(form, message):
    with pytest.raises(ValueError, match=message):
        open_dataset(Pictures(form))
    with pytest.raises(ValueError, match=message):
        open_stream(Pipeline([form(picture(0), 0)]), 8)


def test_what_is_no_data_is_one_sentence():
    with pytest.raises(ValueError, match="a int is no data"):
        open_dataset(7)
    with pytest.raises(ValueError, match="a generator can be read only once"):
        open_dataset(picture(i) for i in range(3))
    with pytest.raises(ValueError, match="the Pipeline does not say how long an epoch is"):
        open_dataset(Pipeline([picture(0)]))
    with pytest.raises(ValueError, match="images_per_epoch=0"):
        open_stream(Pipeline([picture(0)]), 0)
    with pytest.raises(ValueError, match="the Pipeline gave no image"):
        open_stream(Pipeline([]), 5)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its shards open
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_webdataset_pipeline_is_trained_on(shards, tmp_path, num_workers):
    import webdataset

    paths = [str(tmp_path / f"part-{k}.tar") for k in range(4)]
    pipeline = webdataset.WebDataset(paths, shardshuffle=False).with_length(40, silent=True)
    dataset = open_dataset(pipeline)
    assert "40 images" in dataset.describe() and "a resumed run starts it from the beginning" in dataset.describe()
    loader = StreamLoader(dataset, 16, 8, num_workers=num_workers)
    for _ in range(2):
        batches = list(loader)
        assert len(batches) == len(loader) == 5 and loader.position % 5 == 0
        assert all(batch["images"].shape == (8, 3, 16, 16) for batch in batches)
    labels = torch.cat([batch["labels"] for batch in batches])
    assert set(labels.tolist()) == {0, 1, 2}


def test_a_stream_shows_each_image_once_before_it_begins_anew():
    pipeline = Pipeline([(picture(i), i) for i in range(20)])
    loader = StreamLoader(open_stream(pipeline, 20), 16, 10)
    first, second = ([label for batch in loader for label in batch["labels"].tolist()] for _ in range(2))
    assert first == second == list(range(20))


def test_damaged_images_of_a_stream_are_left_out_counted_and_too_many_end_the_run():
    items = [(encoded(picture(i), "png") if i % 4 else b"<html>", i) for i in range(40)]
    loader = StreamLoader(open_stream(Pipeline(items), 30), 16, 10)
    labels = [label for batch in loader for label in batch["labels"].tolist()]
    assert labels == [i for i in range(40) if i % 4] and loader.faults == {"not an image": 10}
    with pytest.raises(UnreadableData, match=r"^9 images in a row cannot be read, first: Pipeline, image 2 \(empty\)"):
        list(StreamLoader(open_stream(Pipeline([picture(0), picture(1)] + [b""] * 30), 30), 16, 10))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_pipeline_that_fails_is_one_sentence(num_workers):
    class Broken(Pipeline):
        def __iter__(self):
            yield from super().__iter__()
            raise KeyError("their own trouble")

    loader = StreamLoader(open_stream(Broken([picture(i) for i in range(300)]), 400), 16, 8, num_workers=num_workers)
    with pytest.raises(UnreadableData, match="Broken failed: KeyError: 'their own trouble'"):
        list(loader)


def test_a_resumed_stream_counts_on_and_says_that_it_begins_anew():
    dataset = open_stream(Pipeline([picture(i) for i in range(20)]), 20)
    loader, resumed = StreamLoader(dataset, 16, 5), StreamLoader(dataset, 16, 5)
    batches = iter(loader)
    next(batches), next(batches)
    (said,) = resumed.load_state_dict(loader.state_dict())
    assert "the Pipeline starts from the beginning" in said
    assert resumed.position == 2 and len(list(resumed)) == 2 and resumed.epoch == 1
    with pytest.raises(ValueError, match=r"global_batch_size was 5 .* and is 10 now"):
        StreamLoader(dataset, 16, 10).load_state_dict(loader.state_dict())


def test_another_batch_size_of_a_stream_begins_the_next_epoch_when_that_is_asked_for():
    """Four steps an epoch, then two: after six steps the second epoch ends, and the third has two."""
    dataset = open_stream(Pipeline([picture(i) for i in range(20)]), 20)
    before, after = StreamLoader(dataset, 16, 5), StreamLoader(dataset, 16, 10)
    before.seek(6)
    first, _ = after.load_state_dict(before.state_dict(), next_epoch=True)
    cut = "the data's global_batch_size, steps changed: epoch 1 ends after 2 batches"
    assert first == f"{cut}, epoch 2 begins with the new value"
    assert (after.epochs_done(6), after.epochs_done(8), after.position_of(4)) == (2, 3, 10)
    assert len(list(after)) == 2 and after.epoch == 3
    again = StreamLoader(dataset, 16, 10)
    again.load_state_dict(after.state_dict())
    assert (again.position, again.epoch, again.position_of(4)) == (8, 3, 10)


def test_large_images_of_the_head_are_thinned(tmp_path):
    dataset = open_stream(Pipeline([np.zeros((1200, 1600, 3), np.uint8)]), 4)
    assert (dataset.images, len(dataset)) == (4, 1)
    assert dataset.read(0).shape == (300, 400, 3)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I", "file"])
def test_deep_pillow_images_keep_their_values(tmp_path, mode):
    values = np.linspace(0, 65535, 40 * 56).reshape(40, 56).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png")
    made = {
        "I;16": lambda: Image.fromarray(values),
        "I;16B": lambda: Image.frombytes("I;16B", (56, 40), values.astype(">u2").tobytes()),
        "I": lambda: Image.fromarray(values.astype(np.int32)),
        "file": lambda: Image.open(tmp_path / "x.png"),
    }[mode]
    dataset = open_dataset(Pictures(lambda pixels, i: (made(), i % 2)), in_chans=1)
    assert dataset.pixel_format.bits == 16 and np.array_equal(dataset.read(3)[:, :, 0], values)
    notes = []
    eight = open_dataset(Pictures(lambda pixels, i: (made(), i % 2)), in_chans=3, bits=8).read(3, notes)
    assert notes == [REDUCED] and np.abs(eight[:, :, 2] - values / 257).max() <= 0.5


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pillow_images_of_other_values_need_a_range(dtype):
    values = (np.linspace(-1000, 3000, 40 * 56).reshape(40, 56)).astype(dtype)
    pictures = Pictures(lambda pixels, i: (Image.fromarray(values), i % 2))
    with pytest.raises(ValueError, match=rf"does not suit: .*{np.dtype(dtype)}, which needs value_range.*give data"):
        open_dataset(pictures, in_chans=1)
    pixels = open_dataset(pictures, in_chans=1, value_range=(-1000, 3000)).read(0)
    assert np.abs(pixels[:, :, 0] / 65535 - (values + 1000.0) / 4000).max() < 1e-4


@pytest.mark.parametrize("mode", ["1", "P", "PA", "CMYK", "YCbCr", "HSV", "LAB", "La", "RGBa", "RGBX"])
def test_pillow_images_of_every_mode_are_read(mode):
    by_way_of = {"La": "LA", "PA": "P", "RGBa": "RGBA"}.get(mode)
    image = Image.fromarray(picture(0))
    if mode == "LAB":
        image = Image.frombytes("LAB", (56, 40), image.tobytes())
    image = image.convert(by_way_of) if by_way_of else image
    image = image if image.mode == mode else image.convert(mode)
    dataset = open_dataset(Pictures(lambda pixels, i: (image, i % 2)), bits=8)
    try:
        expected = np.asarray(image.convert({"La": "LA", "RGBa": "RGBA"}.get(mode, "RGB")).convert("RGB"))
    except ValueError:  # Pillow itself knows no way to RGB
        with pytest.raises(UnreadableImage, match="damaged"):
            dataset.read(0)
        return
    assert np.array_equal(dataset.read(0), expected)


def test_a_damaged_pillow_image_is_one_image_at_fault():
    cut = encoded(picture(0), "png")[:-200]
    pictures = Pictures(lambda pixels, i: (Image.open(io.BytesIO(cut)) if i == 5 else Image.fromarray(pixels), 1))
    dataset = open_dataset(pictures)
    with pytest.raises(UnreadableImage, match="damaged"):
        dataset.read(5)


def test_arrays_of_many_channels_are_never_cut():
    pictures = Pictures(lambda pixels, i: (np.repeat(pixels[:, :, :1], 13, axis=2), 1))
    with pytest.raises(ValueError, match="does not suit"):
        open_dataset(pictures)
    assert open_dataset(pictures, in_chans=13).read(0).shape == (40, 56, 13)


class Column:
    """As a Hugging Face data set: columns by name, dictionaries by number."""

    column_names = ("image", "label")

    def __init__(self):
        self.column_names = ["image", "label"]
        self.features = {"label": type("ClassLabel", (), {"names": ["cat", "dog"]})()}

    def __len__(self):
        return 6

    def __getitem__(self, i):
        return [k % 2 for k in range(6)] if i == "label" else {"image": Image.fromarray(picture(i)), "label": i % 2}


def test_labels_of_subsets_sums_and_columns_are_found_without_reading_items():
    pictures = Pictures(bad=range(1, 40))
    part = torch.utils.data.Subset(pictures, [0, 7, 8, 9])
    for source, labels in (
        (part, [0, 1, 0, 1]),
        (torch.utils.data.Subset(part, np.array([0, 3])), [0, 1]),
        (torch.utils.data.ConcatDataset([part, torch.utils.data.Subset(pictures, [0, 1])]), [0, 1, 0, 1, 0, 1]),
    ):
        dataset = open_dataset(source)
        assert dataset.labels.tolist() == labels and dataset.class_names == ["even", "odd"]
    dataset = open_dataset(Column())
    assert dataset.labels.tolist() == [0, 1] * 3 and dataset.class_names == ["cat", "dog"]


class Items:
    """Items alone know their labels."""

    def __init__(self, label, count=6):
        self.label, self.count = label, count

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        return {"image": picture(i), "label": self.label(i)}


def test_labels_inside_items_are_read_when_a_judge_needs_them():
    train, test = open_dataset(Items(lambda i: i % 2)), open_dataset(Items(lambda i: 1 - i % 2, 4))
    assert train.labels.tolist() == [-1] * 6 and "labels in the items" in train.describe()
    before = train.fingerprint
    assert match_labels(train, test).labels.tolist() == [1, 0, 1, 0]
    assert train.labels.tolist() == [0, 1] * 3 and train.fingerprint == before and "2 classes" in train.describe()
    names = open_dataset(Items(lambda i: "dog" if i % 2 else "cat"))
    match_labels(names, open_dataset(Items(lambda i: "dog", 3)))
    assert names.labels.tolist() == [0, 1] * 3 and names.class_names == ["cat", "dog"]


@pytest.mark.parametrize("label", [0.73, [1, 0, 1], np.ones(3), {"id": 1}, 1e300, 2**70, float("nan")])
def test_labels_of_items_that_are_no_class_are_refused_by_judges_alone(label):
    dataset = open_dataset(Items(lambda i: label if i else 1))
    with pytest.raises(ValueError, match="5 of the 6 images in Items have a label that is no class"):
        match_labels(dataset, dataset)
