"""The protocol with augmentation: what is trained on, what chooses, and which features each family gives."""

import pytest
import timm
import torch

from a2mim.evaluation import linear_probe_dino
from a2mim.evaluation.linear_dino import dino_features

SIZE = 32


class TinyNet(torch.nn.Module):
    """Colour means through a linear layer: features that separate coloured images."""

    def __init__(self):
        super().__init__()
        self.proj = torch.nn.Linear(3, 8)

    def forward_features(self, images):
        return images.mean(dim=(2, 3))

    def forward_head(self, features, pre_logits=False):
        return self.proj(features)


class Views:
    """Coloured images, class = the strongest channel; fresh noise at every epoch, as an augmenting loader gives."""

    def __init__(self, ids, batch_size=8, augment=True):
        self.ids, self.batch_size, self.augment, self.epoch = torch.as_tensor(ids), batch_size, augment, 0

    def __iter__(self):
        self.epoch += 1
        generator = torch.Generator().manual_seed(self.epoch if self.augment else 0)
        for ids in self.ids.split(self.batch_size):
            labels = ids % 3
            images = torch.nn.functional.one_hot(labels, 3).float()[..., None, None].expand(-1, -1, 8, 8)
            yield {
                "images": images + 0.3 * torch.randn(images.shape, generator=generator),
                "labels": labels,
                "ids": ids,
            }


def probe(train_ids, held_ids, **kwargs):
    torch.manual_seed(0)
    return linear_probe_dino(
        TinyNet(),
        Views(train_ids),
        torch.arange(3),
        Views(held_ids, augment=False),
        Views(range(100, 112), augment=False),
        **{"epochs": 15} | kwargs,
    )


def test_it_learns_and_reports_last_and_best():
    result = probe(range(30), range(6), base_lrs=(1e-6, 5.0))
    assert result["top1"] == 100 == result["best_top1"]
    assert result["base_lr"] == 5.0 and result["lr"] == 5.0 * 8 / 256
    assert 1 <= result["best_epoch"] <= 15 and result["n_held_out"] == 6
    assert result["features"] == "pooled output"


def test_held_out_images_are_never_trained_on():
    # without the others nothing is left to learn from, so the heads stay at their start
    untrained = probe(range(6), range(6), base_lrs=(5.0,), epochs=3)
    trained = probe(range(30), range(6), base_lrs=(5.0,), epochs=3)
    assert untrained["batch_size"] == 0 and untrained["top1"] < trained["top1"]


def test_it_repeats_to_the_bit_and_leaves_the_model_alone():
    first, second = probe(range(30), range(6)), probe(range(30), range(6))
    assert torch.equal(first.pop("correct"), second.pop("correct"))
    assert first == second
    model = TinyNet().train()
    before = model.proj.weight.clone()
    views = Views(range(30))
    linear_probe_dino(model, views, torch.arange(3), Views(range(6)), Views(range(9)), epochs=2)
    assert model.training and torch.equal(model.proj.weight, before) and model.proj.weight.grad is None
    assert views.epoch == 2


@pytest.mark.parametrize(
    ("name", "width", "words"),
    [
        ("vit_tiny_patch16_224", 4 * 192, "class tokens of the last 4 blocks"),
        ("vit_base_patch16_224", 2 * 768, "class token of the last block and the mean of its patch tokens"),
        ("xcit_nano_12_p16_224", 128, "pooled output"),
        ("resnet18", 512, "pooled output"),
    ],
)
def test_each_family_gives_dinos_features(name, width, words):
    kwargs = {} if name == "resnet18" else {"img_size": SIZE}
    kwargs |= {"depth": 5} if name.startswith("vit") else {}
    model = timm.create_model(name, num_classes=0, **kwargs).eval()
    extract, description = dino_features(model)
    with torch.no_grad():
        assert extract(torch.randn(2, 3, SIZE, SIZE)).shape == (2, width)
    assert description == words


def test_the_blocks_of_a_vit_are_its_last_ones_each_after_the_final_norm():
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=SIZE, depth=5).eval()
    kept = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: kept.append(output))
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        model.forward_features(images)
        expected = torch.cat([model.norm(tokens)[:, 0] for tokens in kept[-3:]], dim=1)
        torch.testing.assert_close(dino_features(model, 3)[0](images), expected)


def test_a_number_of_blocks_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="has 2 blocks"):
        dino_features(timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=2), 3)
    with pytest.raises(ValueError, match="leave it out"):
        dino_features(timm.create_model("resnet18", num_classes=0), 4)


def test_no_epoch_is_refused():
    with pytest.raises(ValueError, match="epochs=0 must be at least 1"):
        probe(range(30), range(6), epochs=0)
