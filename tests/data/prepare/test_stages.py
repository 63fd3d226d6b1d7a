import pytest

from a2mim.data.prepare import stages
from a2mim.data.prepare.stages import Speed, measure_stages, measure_workers, what_limits


def test_every_stage_takes_some_time(dataset):
    found = measure_stages(dataset, 16, 24)
    assert tuple(found) == stages.STAGES and all(ms > 0 for ms in found.values())


@pytest.mark.parametrize("workers", [0, 1])
def test_speed_is_measured_over_as_many_images_as_were_asked_for(dataset, workers):
    found = measure_workers(dataset, 16, 40, workers, batch_size=8)
    assert found.workers == workers and found.images_per_second > 0
    assert 0 < found.wait <= 1001 / found.images_per_second
    assert found.cpu >= 0


@pytest.mark.parametrize(
    ("slow", "words"),
    [
        ("read", "reading limits (91%"),
        ("decode", "decoding limits (71%"),
        ("resize", "resizing limits"),
        ("write", "write limits"),
    ],
)
def test_what_limits_is_the_slowest_stage(slow, words):
    times = dict.fromkeys(stages.STAGES, 0.1) | {slow: 1.0 if slow != "read" else 4.0}
    said = what_limits(times, [Speed(0, 100, 1, 1), Speed(1, 90, 1, 1), Speed(2, 170, 1, 1)], cores=2)
    assert said.startswith(words) and said.endswith("Fastest: 170 images/s with 2 workers.")


def test_slow_reading_limits_even_when_decoding_takes_longer():
    times = dict.fromkeys(stages.STAGES, 0.1) | {"read": 1.0, "decode": 1.5}
    assert what_limits(times, [Speed(0, 1, 1, 1)], cores=2).startswith("reading limits (36%")


def test_workers_that_do_not_scale_are_named():
    times = dict.fromkeys(stages.STAGES, 0.1)
    said = what_limits(times, [Speed(0, 100, 1, 1), Speed(1, 90, 1, 1), Speed(4, 120, 1, 1)], cores=2)
    assert "4 workers give 1.3 times one: 2 cores are usable here" in said
