"""Features: the loader's order, the poolings on every layout, and a model that is left as it was found."""

import pytest
import timm
import torch

from a2mim.evaluation import extract_features, judge
from a2mim.evaluation.features import pooling_name, pooling_of
from a2mim.pixels import IMAGENET_MEAN, IMAGENET_STD

SIZE = 64


def tiny(name, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=0, **kwargs)


def batches(n=6, size=SIZE, batch_size=4, channels=3, seed=0):
    """Dicts as the loaders hand them out; labels alternate."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (n, channels, size, size), dtype=torch.uint8, generator=generator)
    ids = torch.arange(n)
    return [{"images": images[rows], "labels": rows % 2, "ids": rows} for rows in ids.split(batch_size)]


def test_features_are_those_of_the_model_in_the_loaders_order():
    model = tiny("resnet18")
    loader = batches()
    features, labels = extract_features(model, loader)
    images = torch.cat([batch["images"] for batch in loader]).float() / 255
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    with torch.no_grad():
        expected = model.eval()((images - mean) / std)
    torch.testing.assert_close(features, expected)
    assert features.dtype == torch.float32 and labels.tolist() == [0, 1, 0, 1, 0, 1]


def test_float_images_are_taken_as_they_are_and_pairs_are_welcome():
    model = tiny("resnet18")
    images = torch.randn(3, 3, SIZE, SIZE)
    features, labels = extract_features(model, [(images, torch.tensor([4, 5, 6]))])
    with torch.no_grad():
        torch.testing.assert_close(features, model.eval()(images))
    assert labels.tolist() == [4, 5, 6]


def test_the_model_is_left_as_it_was_found_also_after_an_error():
    model = tiny("resnet18").train()
    model.layer1.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    extract_features(model, batches())
    with pytest.raises(RuntimeError):
        extract_features(model, batches(channels=5))
    assert model.training and model.layer2[0].training and not model.layer1[0].training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_mode_during_the_pass_is_evaluation():
    model = tiny("resnet18").train()
    one_by_one, _ = extract_features(model, batches(batch_size=1))
    together, _ = extract_features(model, batches(batch_size=6))
    torch.testing.assert_close(one_by_one, together, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["xcit_nano_12_p16_224", "vit_tiny_patch16_224", "deit3_small_patch16_224"])
def test_poolings_of_token_models(name):
    model = tiny(name, img_size=SIZE, **({"depth": 2} if "vit" in name or "deit" in name else {}))
    loader = [{"images": torch.randn(2, 3, SIZE, SIZE), "labels": torch.zeros(2)}]
    with torch.no_grad():
        tokens = model.eval().forward_features(loader[0]["images"])
    assert tokens.shape[1] == 1 + 16
    torch.testing.assert_close(extract_features(model, loader, "cls")[0], tokens[:, 0])
    torch.testing.assert_close(extract_features(model, loader, "avg")[0], tokens[:, 1:].mean(dim=1))
    torch.testing.assert_close(extract_features(model, loader)[0], model.forward_head(tokens, pre_logits=True))


@pytest.mark.parametrize(
    ("name", "kwargs"), [("resnet18", {}), ("swin_tiny_patch4_window7_224", {"img_size": SIZE, "depths": (1, 1, 1, 1)})]
)
def test_average_pooling_of_feature_maps_equals_timms_on_either_layout(name, kwargs):
    model = tiny(name, **kwargs)
    loader = batches(n=2)
    torch.testing.assert_close(extract_features(model, loader, "avg")[0], extract_features(model, loader)[0])


@pytest.mark.parametrize(
    ("name", "kwargs", "word"),
    [
        ("resnet18", {}, "avg"),
        ("convnext_atto", {}, "avg, then norm"),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1)}, "avg"),
        ("vit_tiny_patch16_224", {"depth": 1}, "token"),
        ("vit_tiny_patch16_224", {"depth": 1, "global_pool": "avg"}, "avg, then norm"),
        ("vit_tiny_patch16_224", {"depth": 1, "global_pool": "avg", "fc_norm": False}, "avg"),
        ("xcit_nano_12_p16_224", {}, "token"),
        ("xcit_nano_12_p16_224", {"global_pool": "avg"}, "avg"),
    ],
)
def test_the_default_pooling_is_named_as_what_it_is(name, kwargs, word):
    model = tiny(name, **kwargs).eval()
    assert pooling_name(model, "default") == word
    assert (pooling_name(model, "cls"), pooling_name(model, "avg")) == ("token", "avg")
    for norm in (getattr(model, "fc_norm", None), getattr(getattr(model, "head", None), "norm", None)):
        if isinstance(norm, torch.nn.Module) and not isinstance(norm, torch.nn.Identity):
            torch.nn.init.constant_(norm.bias, 1.0)
    with torch.no_grad():
        images = torch.randn(2, *model.pretrained_cfg["input_size"])
        default, mean = (pooling_of(model, pooling)(images) for pooling in ("default", "avg"))
    assert torch.allclose(default, mean, atol=1e-5) == (word == "avg")


def test_judging_with_constants_out_of_range_is_refused_before_any_image_is_looked_at():
    for wrong in ({"k": 0}, {"temperature": -1.0}, {"epochs": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            judge(tiny("resnet18"), iter(()), iter(()), **wrong)


def test_what_cannot_be_pooled_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match="choose one of default, cls, avg"):
        extract_features(tiny("resnet18"), batches(), "max")
    with pytest.raises(ValueError, match="no class token"):
        extract_features(tiny("resnet18"), batches(), "cls")
    with pytest.raises(ValueError, match="no batch"):
        extract_features(tiny("resnet18"), [])


def test_judging_gives_both_protocols_with_intervals_around_their_numbers():
    model = tiny("resnet18")
    result = judge(model, batches(24, seed=1), batches(11, seed=2), epochs=3)
    assert (result["pooling"], result["unreadable"]) == ("avg", {})
    for protocol in ("knn", "linear"):
        low, high = result[protocol]["interval"]
        assert 0 <= low <= result[protocol]["top1"] <= high <= 100
        assert result[protocol]["correct"].shape == (11,)
    assert result["knn"]["k"] == 20
