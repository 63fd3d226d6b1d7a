"""A device that is not there is one sentence, before anything is computed."""

import pytest
import torch

from a2mim.devices import choose_device


def test_without_a_name_a_gpu_is_taken_where_there_is_one():
    assert choose_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    "name", ["foo", "cuda:99", "cpu:x", "meta", "", *([] if torch.cuda.is_available() else ["cuda"])]
)
def test_a_device_that_is_not_there_is_one_sentence_with_what_to_give(name):
    with pytest.raises(ValueError, match=r"device .*(give cpu|numbered from)") as caught:
        choose_device(name)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_where_there_is_none_says_so():
    with pytest.raises(ValueError, match="'cuda' was requested, but torch finds no CUDA GPU"):
        choose_device("cuda")
