"""Architectures of timm: the wiring of one member of each structural signature, real training steps of small ones.

A signature is what the survey saw: family, class, site without numbers, number of maps and tokens, ratio of strides;
the members are the smallest of 1,240 names. `python tools/check_models.py` tries all names.

efficientvim_m2 and efficientvim_m2_dist, signatures of their own, are left out of the wiring: on the meta device, where
shapes are all that is known, 25 hidden states of 256 channels pass for 16 x 16 tokens of 25. With real weights no
stripe moves them cell by cell, and the map of the last stage is decoded: the test of hidden states looks at that.
"""

from pathlib import Path

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from a2mim import encoder as encoder_module
from a2mim.check import survey
from a2mim.check.certificate import checkpoints_alike, reload_difference
from a2mim.encoder import MaskedEncoder
from a2mim.wiring import sites
from a2mim.wiring.networks import build_model

SIGNATURES = Path(__file__).with_name("signatures.txt").read_text().split()
# name, image side; under 5 CPU-seconds each
SMALL = [
    ("resnet10t", 64),
    ("vgg11", 32),
    ("densenet121", 64),
    ("mobilenetv3_small_050", 64),
    ("efficientnet_b0", 64),
    ("regnetx_002", 64),
    ("rexnet_100", 64),
    ("test_nfnet", 64),
    ("convnext_atto", 64),
    ("test_vit", 64),
    ("deit_tiny_distilled_patch16_224", 64),
    ("xcit_nano_12_p16_224", 64),
    ("cait_xxs24_224", 64),
    ("crossvit_tiny_240", 120),
    ("swin_tiny_patch4_window7_224", 64),
    ("pvt_v2_b0", 64),
    ("coat_lite_tiny", 64),
    ("hrnet_w18_small", 64),
    ("efficientvim_m1", 128),
    ("pit_ti_224", 128),
    ("mobilevit_xxs", 64),
    ("tnt_s_legacy_patch16_224", 64),
    ("test_mambaout", 64),
    ("linglo_b0", 64),
]


@pytest.fixture(scope="module")
def one_process():
    """A process group of one, so that DistributedDataParallel can be had."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", SIGNATURES)
def test_every_structure_has_a_place_for_the_token_and_maps_that_cover_the_image(name):
    record = survey.wire(name)  # raises where what is decoded is not as large as the image
    assert record["parameters"] > 0 and len(record["strides"]) == len(record["channels"]) > 0
    finest, coarsest = min(record["site_strides"]), max(record["strides"])
    assert 1 < finest <= coarsest and finest <= 32


@pytest.mark.parametrize(("name", "side"), SMALL)
def test_two_training_steps_move_all_that_lives_and_nothing_else(name, side):
    torch.manual_seed(0)
    model = survey.mim_of(name, side)
    assert survey.faults_of_training(model) == []
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    assert reload_difference(model.encoder.eval(), images) < 1e-6


def test_hidden_states_that_look_like_a_map_are_not_decoded_and_a_map_handed_on_twice_is_decoded_once():
    torch.manual_seed(0)
    encoder = MaskedEncoder("efficientvim_m2")
    assert [place.name for place in encoder.study.finals] == ["stages.2"]
    assert encoder.channels == [512] and encoder.strides == [64]
    assert [m.shape for m in encoder(torch.randn(1, 3, 224, 224))] == [(1, 512, 4, 4)]


@pytest.mark.filterwarnings("ignore:Grad strides do not match")  # of a depthwise convolution; costs speed alone
@pytest.mark.parametrize(
    ("name", "side"),
    [("xcit_nano_12_p16_224", 64), ("crossvit_tiny_240", 120), ("mobilenetv3_small_050", 64), ("pit_ti_224", 128)],
)
def test_distributed_training_needs_no_search_for_unused_parameters(name, side, one_process):
    torch.manual_seed(0)
    model = survey.mim_of(name, side)
    for key in model.encoder.frozen:  # what the wrapper would wait for in vain
        assert not model.encoder.model.get_parameter(key).requires_grad
    wrapped = DistributedDataParallel(model)
    for _ in range(3):  # the reducer speaks up in the step after the one in which a gradient did not come
        sum(wrapped(torch.randn(2, 3, side, side)).values()).backward()


def test_without_the_freeze_distributed_training_would_stop(one_process):
    model = survey.mim_of("xcit_nano_12_p16_224", 64)
    model.encoder.model.requires_grad_(True)
    model.encoder.model.register_parameter("spare", torch.nn.Parameter(torch.zeros(3)))
    wrapped = DistributedDataParallel(model)
    with pytest.raises(RuntimeError, match="find_unused_parameters"):
        for _ in range(2):
            sum(wrapped(torch.randn(2, 3, 64, 64)).values()).backward()


def test_the_examination_sees_a_token_that_moves_the_wrong_positions(monkeypatch):
    model, plain = survey.mim_of("resnet10t", 64), encoder_module.pool_mask
    monkeypatch.setattr(encoder_module, "pool_mask", lambda mask, *rest: plain(mask.roll(1, dims=2), *rest))
    assert survey.faults_of_training(model) == [
        "the token moves visible positions of layer3",
        "the token does not change hidden positions of layer3",
    ]


def test_the_examination_sees_a_parameter_without_gradient_and_a_token_that_goes_nowhere():
    model = survey.mim_of("resnet10t", 64)
    model.encoder.model.register_parameter("spare", torch.nn.Parameter(torch.zeros(3)))
    model.encoder._current_mask = lambda: None
    faults = survey.faults_of_training(model)
    assert "no gradient in encoder.model.spare" in faults and "no gradient in encoder.tokens.0" in faults
    assert "the token does not change hidden positions of layer3" in faults


@pytest.mark.parametrize(
    ("name", "side"), [("efficientnet_b0", 64), ("convnext_atto", 64), ("swin_tiny_patch4_window7_224", 64)]
)
def test_gradient_checkpointing_gives_the_token_the_same_gradient(name, side):
    torch.manual_seed(0)
    encoder = MaskedEncoder(name, img_size=side)
    assert checkpoints_alike(encoder, torch.randn(2, 3, side, side))


def test_a_hook_that_checkpointing_skips_is_found_out(monkeypatch):
    monkeypatch.setattr(sites, "hook_target", lambda model, name: name)
    encoder = MaskedEncoder("resnet10t", img_size=64)  # its hook is on the nn.Sequential
    with pytest.raises(ValueError, match="checkpointing changes the token's gradient"):
        checkpoints_alike(encoder, torch.randn(2, 3, 64, 64))


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("crossvit_tiny_240", 96, ["96 x 96 px", "own size", "check-model"]),
        ("efficientformer_l1", 96, ["96 x 96 px", "own size", "check-model"]),
        ("convit_tiny", (64, 96), ["64 x 96 px", "own size", "check-model"]),
    ],
)
def test_a_size_that_a_network_cannot_take_is_one_sentence(name, size, words):
    with pytest.raises(ValueError) as error:
        MaskedEncoder(name, img_size=size)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_an_unknown_name_comes_with_the_nearest():
    with pytest.raises(ValueError, match=r"'crossvit_tny_240' is not a model that timm knows; .*crossvit_tiny_240"):
        build_model("crossvit_tny_240")
