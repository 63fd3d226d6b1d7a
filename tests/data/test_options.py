import pytest

from a2mim.data import StreamLoader, TrainLoader, open_stream
from a2mim.data.crops import height_and_width
from a2mim.data.options import LoaderOptions


class Pipeline:
    def __iter__(self):
        import numpy as np

        yield from (np.full((20, 20, 3), number, np.uint8) for number in range(16))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": (0.9, 0.5)}, "scale=(0.9, 0.5) must be"),
        ({"ratio": (0, 1)}, "ratio=(0, 1) must be"),
        ({"interpolation": "cubic"}, "interpolation='cubic' is unknown"),
    ],
)
def test_both_loaders_refuse_the_same_mistakes_in_the_same_words(dataset, options, message):
    stream = open_stream(Pipeline(), 16)
    for make in (lambda: TrainLoader(dataset, 16, 8, **options), lambda: StreamLoader(stream, 16, 8, **options)):
        with pytest.raises(ValueError) as error:
            make()
        assert message in str(error.value)


@pytest.mark.parametrize("size", [0, (16,), (16, -1), (1, 2, 3)])
def test_a_size_that_is_none_is_refused_by_both_loaders(dataset, size):
    stream = open_stream(Pipeline(), 16)
    for loader, data in ((TrainLoader, dataset), (StreamLoader, stream)):
        with pytest.raises(ValueError, match=r"must be a positive number of pixels, or .height, width."):
            loader(data, size, 8)


def test_one_number_is_both_sides():
    assert height_and_width(24) == (24, 24) and height_and_width([16, 24]) == (16, 24)
    assert LoaderOptions((16, 24), 8).crops().size == (16, 24)


def test_a_process_takes_its_share_of_a_batch():
    assert LoaderOptions(16, 12, world_size=3).batch_size == 4
