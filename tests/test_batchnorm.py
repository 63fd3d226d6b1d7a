import copy
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn

from a2mim import MIM
from a2mim.batchnorm import calibrate_batchnorm, synchronise, unsynchronise
from a2mim.encoder import MaskedEncoder
from a2mim.engine.assembly import synchronise_norms
from a2mim.engine.config import load_config
from a2mim.engine.rows import shipped_rows
from a2mim.losses import MaskedL2
from a2mim.masking import BlockMask


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.BatchNorm2d(3), nn.Conv2d(3, 5, 3, stride=2), nn.BatchNorm2d(5, momentum=0.3), nn.ReLU(), nn.Dropout(0.5)
    )


def unequal_batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 3, 9, 9, generator=generator) * (1 + n) + n for n in (4, 2, 7)]


def exact_statistics(model: nn.Module, batches: list[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Slow reference: all values that reach each layer, side by side, each batch normalised by its own statistics."""
    first, second = [], []
    for x in batches:
        first.append(x)
        normal = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
        second.append(model[1](normal))
    found = []
    for inputs in (first, second):
        values = torch.cat(inputs).double().movedim(1, 0).flatten(1)
        found.append((values.mean(1).float(), values.var(1).float()))
    return found


def test_statistics_equal_those_of_all_values_together():
    model, batches = small_network(), unequal_batches()
    expected = exact_statistics(model, batches)
    assert calibrate_batchnorm(model, batches) == 13
    for layer, (mean, variance) in zip((model[0], model[2]), expected, strict=True):
        torch.testing.assert_close(layer.running_mean, mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(layer.running_var, variance, rtol=1e-5, atol=1e-5)


def test_old_statistics_leave_no_trace():
    one, other = small_network(), small_network()
    other[0].running_mean.fill_(100)
    other[2].running_var.fill_(100)
    for model in (one, other):
        calibrate_batchnorm(model, unequal_batches())
    assert all(torch.equal(a, b) for a, b in zip(one.buffers(), other.buffers(), strict=True))


def test_modes_momentum_and_gradients_are_left_as_they_were():
    model = small_network()
    model[4].eval()
    calibrate_batchnorm(model, unequal_batches())
    assert [m.training for m in model] == [True, True, True, True, False]
    assert [model[0].momentum, model[2].momentum] == [0.1, 0.3]
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model)


def test_dropout_is_off_while_statistics_are_taken():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout(0.9), nn.BatchNorm2d(4))
    batch = unequal_batches()[0]
    calibrate_batchnorm(model, [batch])
    torch.testing.assert_close(model[2].running_mean, model[0](batch).mean((0, 2, 3)).detach())


def test_a_model_without_batchnorm_is_not_fed():
    def refuse():
        raise AssertionError("the batches were read")
        yield

    assert calibrate_batchnorm(nn.Conv2d(3, 4, 1), refuse()) == 0


def test_no_batch_is_an_error_and_changes_nothing():
    model = small_network()
    model[0].running_mean.fill_(3)
    with pytest.raises(ValueError, match="at least one batch"):
        calibrate_batchnorm(model, [])
    assert (model[0].running_mean == 3).all()


def test_a_failing_batch_leaves_the_old_statistics():
    model = small_network()
    with pytest.raises(RuntimeError):
        calibrate_batchnorm(model, [unequal_batches()[0], torch.randn(2, 7, 9, 9)])
    assert (model[0].running_mean == 0).all() and model[0].momentum == 0.1


@pytest.mark.parametrize("sizes", [(1, 4), (4, 1), (1, 1, 4), (4, 1, 4), (1, 1)])
def test_a_batch_of_one_image_is_joined_to_its_neighbour(sizes):
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3))  # torch refuses one image here
    images = torch.randn(sum(sizes), 3, 5, 5, generator=torch.Generator().manual_seed(2))
    assert calibrate_batchnorm(model, images.split(sizes)) == sum(sizes)
    torch.testing.assert_close(model[1].running_mean, images.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)


def test_one_image_alone_leaves_the_statistics_with_a_warning():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3))
    model[0].running_mean.fill_(3)
    with pytest.warns(UserWarning, match="one image is too few"):
        assert calibrate_batchnorm(model, [torch.randn(1, 3, 5, 5)]) == 0
    assert (model[0].running_mean == 3).all() and model[0].momentum == 0.1


def test_one_image_alone_is_enough_for_larger_maps():
    model, image = nn.BatchNorm2d(3), torch.randn(1, 3, 5, 5)
    assert calibrate_batchnorm(model, [image]) == 1
    torch.testing.assert_close(model.running_mean, image.mean((0, 2, 3)))


@pytest.mark.parametrize(
    "name",
    ["resnet10t", "efficientnet_lite0", "densenet121", "dla46x_c", "mobilenetv3_small_050", "xcit_nano_12_p16_224"],
)
def test_synchronised_batchnorm_computes_the_same_there_and_back(name):
    torch.manual_seed(0)
    model = randomised(timm.create_model(name, num_classes=0)).eval()
    images, before = torch.randn(2, 3, 64, 64), [type(m) for m in model.modules()]
    keys, parameters = list(model.state_dict()), list(model.parameters())
    with torch.no_grad():
        expected = model(images)
        synchronise(model)
        assert any(isinstance(m, torch.nn.SyncBatchNorm) for m in model.modules())
        torch.testing.assert_close(model(images), expected)
        unsynchronise(copied := copy.deepcopy(model))
        torch.testing.assert_close(copied(images), expected)
        unsynchronise(model)
        torch.testing.assert_close(model(images), expected)
    assert [type(m) for m in model.modules()] == before and list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))


def randomised(model):
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    return model


def test_hooks_go_with_a_synchronised_layer():
    encoder = MaskedEncoder("resnet10t", site="bn1", img_size=64).eval()
    images, cells = torch.randn(1, 3, 64, 64), torch.ones(1, 2, 2, dtype=torch.bool)
    with torch.no_grad():
        encoder.tokens[0].fill_(3)
        expected = encoder(images, cells)[0]
        synchronise(encoder)
        torch.testing.assert_close(encoder(images, cells)[0], expected)
        torch.testing.assert_close(unsynchronise(encoder)(images, cells)[0], expected)
        assert not torch.allclose(encoder(images)[0], expected)


def test_synchronising_a_method_reaches_the_norms_of_spark_s_decoder_and_changes_no_number_of_one_process():
    torch.manual_seed(0)
    encoder = MaskedEncoder("test_resnet", img_size=64, hide="sparse", maps=["layer2", "layer3", "layer4"])
    method = MIM(encoder, BlockMask(32, 0.5), [MaskedL2()], {"type": "LightDecoder", "width": 32}, fill="none").train()
    twin, keys = copy.deepcopy(method), list(method.state_dict())
    synchronise_norms(SimpleNamespace(model=twin, network=twin.encoder))
    plain = [name for name, m in twin.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert not plain and list(twin.state_dict()) == keys
    for level in twin.decoders.densify.values():
        assert isinstance(level.norm, nn.SyncBatchNorm)
    images, mask = torch.randn(2, 3, 64, 64), BlockMask(32, 0.5)(2, 64, 64)
    expected, found = (sum(one(images, mask=mask).values()) for one in (method, twin))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(twin.state_dict(), method.state_dict())  # running statistics, of visible cells alone


def test_without_a_method_only_the_network_is_synchronised():
    task = SimpleNamespace(model=nn.Sequential(small_network(), nn.BatchNorm2d(5)))
    task.network = task.model[0]
    synchronise_norms(task)
    assert isinstance(task.network[0], nn.SyncBatchNorm) and type(task.model[1]) is nn.BatchNorm2d


@pytest.mark.parametrize("name", [n for n, row in shipped_rows().items() if "LightDecoder" in str(row["decoder"])])
def test_spark_s_recipes_synchronise(name):
    assert load_config(name).sync_batchnorm
