import contextlib
import itertools
import pickle

import numpy as np
import pytest
import torch
from batch_streams import digest, loader, stream
from small_images import encoded, picture, write_tar

from a2mim.data import EvalLoader, TrainLoader, check_shards, open_dataset
from a2mim.data.batches import Batches
from a2mim.data.decode import LENIENT, UnreadableImage, decode
from a2mim.data.faults import UnreadableData
from a2mim.data.records import Request


def test_batches_have_the_promised_shapes_and_types(dataset):
    train = TrainLoader(dataset, (16, 24), 8, world_size=2)
    batches = list(train)
    assert len(batches) == len(train) == 5
    for batch in batches:
        assert set(batch) == {"images", "labels", "ids"}
        assert batch["images"].shape == (4, 3, 16, 24) and batch["images"].dtype == torch.uint8
        assert batch["labels"].dtype == batch["ids"].dtype == torch.int64
        assert batch["labels"].tolist() == (batch["ids"] % 3).tolist()


def test_an_epoch_shows_every_image_once_and_the_next_one_in_another_order(dataset):
    train = loader(dataset)
    first, second = ([i for batch in train for i in batch["ids"].tolist()] for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(40)) and first != second
    assert train.epoch == 2


def test_the_number_of_workers_does_not_change_the_stream(dataset):
    transforms = [dict(type="RandomGrayscale", prob=0.5, keep_channels=True)]
    assert stream(loader(dataset, transforms=transforms)) == stream(
        loader(dataset, transforms=transforms, num_workers=2, prefetch=3)
    )


def test_what_is_sent_to_a_spawned_worker_gives_the_same_batch(dataset):
    train = loader(dataset, transforms=[dict(type="RandomGrayscale", prob=0.5, keep_channels=True)])
    batches, ids = Batches(train.dataset, train.crop), np.array([7, 30, 2])
    here, there = (made[Request(3, ids, ahead=ids)] for made in (batches, pickle.loads(pickle.dumps(batches))))
    assert torch.equal(here.images, there.images) and (here.ids == there.ids).all()


@pytest.mark.parametrize("stop", [0, 1, 4, 5, 6, 10, 13])
def test_resumed_equals_uninterrupted(dataset, stop):
    whole = stream(loader(dataset), epochs=3)
    interrupted = loader(dataset)
    seen = []
    while len(seen) < stop:
        seen += [digest(batch) for batch in itertools.islice(interrupted, stop - len(seen))]
    state = interrupted.state_dict()
    resumed = loader(dataset)
    resumed.load_state_dict(state)
    assert resumed.position == stop
    while len(seen) < 15:
        seen += [digest(batch) for batch in resumed]
    assert seen == whole


def test_resuming_with_workers_does_not_count_what_they_had_prepared(dataset):
    whole = stream(loader(dataset), epochs=1)
    ahead = loader(dataset, num_workers=1, prefetch=4)
    seen = [digest(batch) for batch in itertools.islice(ahead, 2)]
    assert ahead.position == 2
    assert seen + [digest(batch) for batch in ahead] == whole


def test_the_state_is_plain_and_counts_a_batch_when_it_is_handed_out(dataset):
    train = loader(dataset)
    for number, _ in enumerate(train):
        state = train.state_dict()
        assert divmod(number + 1, 5) == (state["epoch"], state["step"])
    plain = (int, str, dict, type(None))
    assert all(isinstance(value, plain) for value in state.values())


def test_any_rank_count_shows_the_same_global_batches(dataset):
    whole = list(loader(dataset))
    parts = [list(loader(dataset, rank=rank, world_size=2)) for rank in range(2)]
    for step, batch in enumerate(whole):
        for rank in range(2):
            assert torch.equal(parts[rank][step]["ids"], batch["ids"][rank::2])
            assert torch.equal(parts[rank][step]["images"], batch["images"][rank::2])


def test_two_ranks_resume_as_one(dataset):
    pair = loader(dataset, rank=1, world_size=2)
    list(itertools.islice(pair, 3))
    one = loader(dataset)
    one.load_state_dict(pair.state_dict())
    assert [digest(batch) for batch in one] == stream(loader(dataset), epochs=1)[3:]


def test_seek_counts_steps_from_the_first_epoch(dataset):
    whole = stream(loader(dataset), epochs=2)
    train = loader(dataset)
    train.seek(7)
    assert stream(train, epochs=1) == whole[7:]
    with pytest.raises(ValueError, match="must not be negative"):
        train.seek(-1)


@pytest.mark.parametrize(
    "field, change",
    [("global_batch_size", {"batch": 4}), ("seed", {"seed": 1}), ("lanes", {"lanes": 2}), ("block", {"block": 5})],
)
def test_a_state_of_another_plan_is_refused_by_name(dataset, field, change):
    with pytest.raises(ValueError, match=rf"{field} was .* when the state was saved and is .* now"):
        loader(dataset, **change).load_state_dict(loader(dataset).state_dict())


def test_a_state_of_other_data_is_refused(dataset, tmp_path):
    fewer = open_dataset(str(tmp_path / "part-{0..2}.tar"))
    with pytest.raises(ValueError, match="data was"):
        loader(fewer).load_state_dict(loader(dataset).state_dict())


def test_a_crop_depends_on_seed_epoch_and_sample_only(dataset):
    def crops(**options):
        train = loader(dataset, **options)
        return {i: image for batch in train for i, image in zip(batch["ids"].tolist(), batch["images"], strict=True)}

    one, other_batch, other_seed = crops(), crops(batch=5, lanes=3), crops(seed=1)
    assert all(torch.equal(one[i], other_batch[i]) for i in range(40))
    assert sum(torch.equal(one[i], other_seed[i]) for i in range(40)) == 0


def test_wrong_arguments_are_one_sentence(dataset):
    for options, message in (
        (dict(batch=41), "has 40 images and global_batch_size is 41"),
        (dict(world_size=3), "cannot be divided among 3"),
        (dict(scale=(0.5, 1.5)), r"scale=\(0.5, 1.5\) must be"),
        (dict(ratio=(2, 1)), r"ratio=\(2, 1\) must be"),
        (dict(interpolation="nearest"), "choose bilinear or bicubic"),
    ):
        with pytest.raises(ValueError, match=message):
            loader(dataset, **options)
    for source in (lambda **o: loader(dataset, **o), lambda **o: EvalLoader(dataset, 16, **o)):
        with pytest.raises(ValueError, match="num_workers=-1 must be at least 0"):
            source(num_workers=-1)
    with pytest.raises(ValueError, match="img_size=0"):
        TrainLoader(dataset, 0, 8)
    with pytest.raises(ValueError, match="resize=8 is smaller than img_size=16"):
        EvalLoader(dataset, 16, resize=8)


def damaged(tmp_path, good: int, bad: int):
    """Good images, and after them bad ones of three kinds in turn."""
    broken = (b"", b"<html>", encoded(picture(0))[:300])
    contents = [encoded(picture(i)) for i in range(good)] + [broken[i % 3] for i in range(bad)]
    members = [
        (f"{i:04d}.{kind}", data) for i, c in enumerate(contents) for kind, data in (("jpg", c), ("cls", b"%d" % i))
    ]
    return open_dataset(write_tar(tmp_path / "damaged.tar", members))


def test_unreadable_images_are_replaced_alike_and_counted_by_reason(tmp_path):
    dataset = damaged(tmp_path, 37, 3)
    train, again = loader(dataset), loader(dataset, num_workers=1)
    batches = list(train)
    assert [digest(batch) for batch in batches] == stream(again, epochs=1)
    shown = torch.cat([batch["ids"] for batch in batches])
    assert len(shown) == 40 and shown.max() < 37
    assert torch.equal(shown, torch.cat([batch["labels"] for batch in batches]))
    assert train.faults == again.faults and train.faults.keys() == {"empty", "not an image", "damaged"}
    assert train.state_dict()["faults"] == dict(train.faults)


def test_too_many_unreadable_images_end_the_run_with_names(tmp_path):
    dataset = damaged(tmp_path, 60, 20)
    train = loader(dataset)
    with pytest.raises(UnreadableData, match=r"too many of \d+ images cannot be read .*damaged\.tar/00\d\d") as error:
        list(train)
    assert train.faults.total() >= 11 and len(train.faults.names) == 3
    assert all(name in str(error.value) for name in train.faults.names)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_nothing_but_unreadable_images_is_one_sentence(tmp_path, num_workers):
    dataset = damaged(tmp_path, 0, 12)
    with pytest.raises(UnreadableData, match=r"^9 images in a row cannot be read, first: .*damaged\.tar/00"):
        list(loader(dataset, 4, num_workers=num_workers))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_iterating_leaves_the_global_generator_alone(dataset, num_workers):
    """A network's own random numbers come from it: a resumed run starts one more pass than an uninterrupted one."""
    train, test = loader(dataset, num_workers=num_workers), EvalLoader(dataset, 16, num_workers=num_workers)
    before = torch.get_rng_state()
    next(iter(train)), next(iter(test))
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluation_shows_the_whole_set_in_order(dataset):
    test = EvalLoader(dataset, 16, resize=None, batch_size=12)
    for _ in range(2):
        batches = list(test)
        assert len(batches) == len(test) == 4
        assert torch.cat([batch["ids"] for batch in batches]).tolist() == list(range(40))
        assert torch.cat([batch["labels"] for batch in batches]).tolist() == dataset.labels.tolist()
        assert batches[-1]["images"].shape == (4, 3, 16, 16)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_evaluation_leaves_unreadable_images_out_and_counts_them(tmp_path, num_workers):
    dataset = damaged(tmp_path, 20, 2)
    test = EvalLoader(dataset, 16, resize=20, indices=[3, 20, 5, 21], batch_size=3, num_workers=num_workers)
    batches = list(test)
    assert [batch["ids"].tolist() for batch in batches] == [[3, 5]]  # the second batch had only image 21
    assert batches[0]["labels"].tolist() == [3, 5] and batches[0]["images"].shape == (2, 3, 16, 16)
    (alone,) = EvalLoader(dataset, 16, resize=20, indices=[3, 5])
    assert torch.equal(batches[0]["images"], alone["images"])
    assert test.faults == test.faults.unreadable == {"empty": 1, "not an image": 1}


def test_evaluation_of_nothing_readable_is_one_sentence(tmp_path):
    test = EvalLoader(damaged(tmp_path, 0, 3), 16, resize=20)
    with pytest.raises(UnreadableData, match=r"^none of 3 images can be read, first: .*0000 \(empty\)"):
        list(test)


def lightly_damaged(number: int) -> bytes:
    """A JPEG with one wrong byte, which libjpeg warns about and decodes."""
    for place in range(250, 700):
        data = bytearray(encoded(picture(number)))
        data[place] ^= 0x3C
        notes = []
        with contextlib.suppress(UnreadableImage):
            decode(bytes(data), notes)
        if notes == [LENIENT]:
            return bytes(data)
    raise AssertionError("no byte does it")


def test_images_decoded_in_spite_of_damage_are_shown_counted_and_never_too_many(tmp_path):
    members = [(f"{i:04d}.jpg", lightly_damaged(i)) for i in range(16)]
    dataset = open_dataset(write_tar(tmp_path / "light.tar", members))
    train, test = loader(dataset, num_workers=1), EvalLoader(dataset, 16, resize=20)
    for source in (train, test):
        assert sorted(i for batch in source for i in batch["ids"].tolist()) == list(range(16))
        assert source.faults == {LENIENT: 16} and source.faults.unreadable == {} and source.faults.names == []
    report = check_shards(str(tmp_path / "light.tar"))
    assert report.ok and report.lenient == 16 and LENIENT in str(report)


def test_evaluation_with_workers_is_the_same(dataset):
    options = dict(img_size=16, resize=24, batch_size=16)
    assert stream(EvalLoader(dataset, **options, num_workers=1)) == stream(EvalLoader(dataset, **options))


def test_evaluation_images_are_what_the_names_say(dataset):
    (batch,) = EvalLoader(dataset, 40, resize=None, interpolation="bilinear", batch_size=40)
    middle = decode(encoded(picture(17)))[:, 8:48]
    assert np.array_equal(batch["images"][17].permute(1, 2, 0).numpy(), middle)


@pytest.mark.parametrize("stop", [0, 3, 5, 7])
def test_the_next_epoch_begins_with_other_data_when_that_is_asked_for(dataset, tmp_path, stop):
    """Five steps an epoch of 40 images; then three, of 32 images in batches of 8 with another seed, or of 10."""
    before = loader(dataset)
    while before.position < stop:
        list(itertools.islice(before, min(5, stop - before.position)))
    state = before.state_dict()
    fewer = open_dataset(str(tmp_path / "part-{0..2}.tar"))
    after = loader(fewer, batch=10, seed=1)
    (said,) = after.load_state_dict(state, next_epoch=True)
    begun = -(-stop // 5)
    assert "data, global_batch_size, seed" in said and f"epoch {begun} begins" in said
    assert ("ends after" in said) == bool(stop % 5)
    assert (after.position, after.epoch) == (stop, begun)
    fresh = loader(fewer, batch=10, seed=1)
    fresh.seek(begun * len(fresh))
    assert stream(after, 2) == stream(fresh, 2)
    assert after.position == stop + 2 * len(after) == after.position_of(begun + 2)
    assert after.epochs_done(stop) == begun and after.epochs_done(after.position) == begun + 2


def test_after_other_data_a_state_resumes_exactly_and_needs_no_leave(dataset, tmp_path):
    fewer = open_dataset(str(tmp_path / "part-{0..2}.tar"))
    before, changed = loader(dataset), loader(fewer)
    list(itertools.islice(before, 3))
    changed.load_state_dict(before.state_dict(), next_epoch=True)
    whole, states = [], []
    for _ in range(2):
        for batch in changed:
            whole.append(digest(batch))
            states.append(changed.state_dict())
    for done, state in enumerate(states[:-1], start=1):  # four steps an epoch
        again = loader(fewer)
        assert again.load_state_dict(state) == []
        assert again.position == 3 + done and again.epoch == 1 + done // 4
        assert stream(again, 1) == whole[done : done // 4 * 4 + 4]


def test_leave_to_change_changes_nothing_when_nothing_changed(dataset):
    before = loader(dataset)
    list(itertools.islice(before, 3))
    after = loader(dataset)
    assert after.load_state_dict(before.state_dict(), next_epoch=True) == []
    assert stream(after, 1) == stream(before, 1)


def test_states_of_the_time_before_positions_were_in_them_still_resume(dataset):
    before = loader(dataset)
    list(itertools.islice(before, 3)), before.seek(8)
    state = {key: value for key, value in before.state_dict().items() if key not in ("position", "repeats")}
    after = loader(dataset)
    after.load_state_dict(state)
    assert after.position == 8 and stream(after, 1) == stream(before, 1)
