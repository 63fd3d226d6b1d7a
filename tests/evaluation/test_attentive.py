"""Attentive probes against the equations as slow loops, on features of known structure, and in every judgement."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

from a2mim.evaluation import attentive_probe, judge, linear_probe
from a2mim.evaluation.attentive import AttentiveHeads, CapiProbe, EfficientProbe, fitting_queries
from a2mim.evaluation.attentive_probe import CellFile
from a2mim.evaluation.cells import MapReader, flat_cells, map_of, noise
from a2mim.protocols import read_protocol


def slow_efficient(x, query, value, linear, eps=1e-6):
    """EP as its equations say, image by image and query by query; batch statistics in the normalisation."""
    pooled = []
    for cells in x:  # (N, D)
        projected = cells @ value.T
        blocks = []
        for i, q in enumerate(query):
            weights = torch.softmax(cells @ q / len(q) ** 0.5, dim=0)
            size = projected.shape[1] // len(query)
            blocks.append(sum(w * row[i * size : (i + 1) * size] for w, row in zip(weights, projected, strict=True)))
        pooled.append(torch.cat(blocks))
    pooled = torch.stack(pooled)
    normal = (pooled - pooled.mean(0)) / (pooled.var(0, correction=0) + eps) ** 0.5
    return pooled, normal @ linear.weight.T + linear.bias


@pytest.mark.parametrize(("dim", "queries", "reduction"), [(64, 8, 1), (64, 4, 2), (96, 32, 1)])
def test_efficient_probe_is_its_equations(dim, queries, reduction):
    torch.manual_seed(0)
    probe = EfficientProbe(dim, 5, queries, reduction).double()
    nn.init.normal_(probe.query)  # as it starts, attention is nearly even and hides an error
    x = torch.randn(7, 9, dim, dtype=torch.float64)
    pooled, logits = slow_efficient(x, probe.query, probe.value.weight, probe.head)
    assert torch.allclose(probe.pool(x), pooled, atol=1e-12)
    assert torch.allclose(probe.train()(x), logits, atol=1e-12)
    assert torch.allclose(probe.attention(x).sum(-1), torch.ones(7, queries, dtype=torch.float64))
    unbiased = 0.1 * pooled.var(0) + 0.9
    assert torch.allclose(probe.norm.running_var, unbiased)
    assert probe.value.bias is None and probe.head.bias is not None and probe.norm.weight is None
    assert sum(p.numel() for p in probe.parameters()) == queries * dim + dim**2 // reduction + 5 * (
        dim // reduction + 1
    )


def test_capi_probe_is_scaled_dot_product_attention_of_64_channels_a_head():
    torch.manual_seed(0)
    probe = CapiProbe(128, 3).double()
    nn.init.normal_(probe.query)
    nn.init.normal_(probe.kv.bias)
    x = torch.randn(5, 9, 128, dtype=torch.float64)
    keys, values = (part.unflatten(2, (2, 64)).transpose(1, 2) for part in probe.kv(x).chunk(2, dim=2))
    query = probe.query.view(1, 2, 1, 64).expand(5, -1, -1, -1)
    pooled = nn.functional.scaled_dot_product_attention(query, keys, values).transpose(1, 2).flatten(1)
    assert torch.allclose(probe(x), probe.head(pooled), atol=1e-12)


@pytest.mark.parametrize(
    "make", [lambda: EfficientProbe(64, 3, 48), lambda: EfficientProbe(64, 3, 64, 2), lambda: CapiProbe(96, 3)]
)
def test_widths_that_do_not_fit_are_refused(make):
    with pytest.raises(ValueError, match="channels"):
        make()


def test_queries_are_cut_to_what_divides_the_channels():
    assert [fitting_queries(d, 32) for d in (64, 96, 100, 7)] == [32, 32, 25, 7]


@pytest.mark.parametrize("optimizer", ["adamw", "lars"])
def test_heads_of_several_rates_learn_as_each_alone(optimizer):
    c = {"probe": "efficient", "queries": 4, "reduction": 1, "optimizer": optimizer, "momentum": 0.9}
    c |= {"trust_coefficient": 0.001, "betas": [0.9, 0.95], "weight_decays": [0.05]}
    torch.manual_seed(0)
    x, targets = torch.randn(16, 6 * 8), torch.arange(16) % 3
    together, alone = AttentiveHeads([0.01, 0.1], 8, 3, c), AttentiveHeads([0.1], 8, 3, c)
    before = alone.logits(x).clone()
    for factor in (1.0, 0.5, 0.25):
        together.step(x, targets, factor)
        alone.step(x, targets, factor)
    assert torch.allclose(together.logits(x)[1], alone.logits(x)[0], atol=1e-5)
    assert not torch.allclose(before, alone.logits(x), atol=1e-4)


def needle(images, classes=4, cells=16, dim=32, seed=0, task=7):
    """The class stands in one cell at a random place, marked by one channel; all other cells say another class."""
    task = np.random.default_rng(task)
    codes = task.normal(size=(classes, dim))
    generator = np.random.default_rng(seed)
    labels = np.arange(images) % classes
    x = codes[generator.integers(classes, size=(images, cells))]
    place = generator.integers(cells, size=images)
    x[np.arange(images), place] = codes[labels]
    x = x + 0.3 * generator.normal(size=x.shape)
    x[..., 0] = 0
    x[np.arange(images), place, 0] = 3
    return torch.from_numpy(x).float(), torch.from_numpy(labels)


def test_it_finds_the_cell_that_the_mean_drowns():
    train, test = needle(800), needle(200, seed=1)
    found = attentive_probe(*train, *test, epochs=40, base_lrs=[0.003, 0.03])
    means = [(x.mean(1), y) for x, y in (train, test)]
    linear = linear_probe(*means[0], *means[1], epochs=40)
    assert found["top1"] > 95 and linear["top1"] < 70
    assert found["held_out"] == 80 and found["n_train"] == 720 and found["best_top1"] >= found["top1"]


def test_the_test_set_never_chooses():
    train, test = needle(400), needle(100, seed=1)
    first = attentive_probe(*train, *test, epochs=3)
    other = attentive_probe(*train, test[0], (test[1] + 1) % 4, epochs=3)
    assert first["base_lr"] == other["base_lr"] and first["held_out_top1"] == other["held_out_top1"]


def test_few_images_get_more_epochs_until_the_probe_has_taken_its_least_steps():
    (cells, labels), test = needle(300), needle(200, seed=1)
    floored = attentive_probe(cells, labels, *test)  # 270 images to train on: two steps an epoch
    assert floored["epochs"] == 50
    same = attentive_probe(cells, labels, *test, epochs=50, least_steps=1)
    assert same["top1"] == floored["top1"] and torch.equal(same["correct"], floored["correct"])
    short = attentive_probe(cells, labels, *test, least_steps=1)
    assert short["epochs"] == 20 and floored["top1"] > short["top1"] + 5
    with pytest.raises(ValueError, match="least_steps"):
        attentive_probe(cells, labels, *test, least_steps=0)


def test_labels_without_meaning_stay_at_chance():
    x, _ = needle(600)
    labels = torch.from_numpy(np.random.default_rng(3).integers(4, size=600))
    found = attentive_probe(x[:400], labels[:400], x[400:], labels[400:], epochs=10)
    assert found["top1"] < 40


@pytest.mark.parametrize("name", ["efficient-probe", "efficient-probe-published", "attentive-capi"])
def test_every_protocol_runs_on_cells(name):
    x, labels = needle(48, dim=64)
    rates = [0.001, 0.01]
    options = {"epochs": 2, "base_lrs": rates} | ({"epoch_length": 3} if "capi" in name else {})
    found = attentive_probe(x[:40], labels[:40], x[40:], labels[40:], protocol=name, **options)
    decays = read_protocol(name).constants["weight_decays"]
    assert found["n_heads"] == 2 * len(decays) and 0 <= found["top1"] <= 100


@pytest.mark.parametrize(
    ("name", "size", "grid"),
    [("resnet18", 64, (2, 2)), ("test_vit", 160, (10, 10)), ("swin_tiny_patch4_window7_224", 224, (7, 7))],
)
def test_a_map_is_read_cell_by_cell_whatever_the_layout(name, size, grid):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0).eval()
    images = noise(3, (size, size), "cpu")
    reader = MapReader(model, images)
    maps = map_of(model, reader)(images)
    with torch.no_grad():
        final = model.forward_features(images)
        pooled = {"resnet18": lambda f: f.mean((2, 3)), "test_vit": lambda f: f[:, model.num_prefix_tokens :].mean(1)}
        mean = pooled.get(name, lambda f: f.mean((1, 2)))(final)
    assert reader.grid == grid and torch.allclose(maps.mean((2, 3)), mean, atol=1e-5)
    assert flat_cells(maps).shape == (2, reader.numbers) and not model._forward_hooks
    small = MapReader(model, images, most_side=2)
    assert small.grid == (2, 2) and map_of(model, small)(images).shape[2:] == (2, 2)


def test_a_named_map_is_read_from_its_module():
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=0).eval()
    images = noise(3, (64, 64), "cpu")
    with torch.no_grad():
        stem = model.maxpool(model.act1(model.bn1(model.conv1(images))))
        wanted = model.layer3(model.layer2(model.layer1(stem)))
    assert torch.allclose(map_of(model, MapReader(model, images, "layer3"))(images), wanted)


def test_cells_come_back_from_their_file():
    kept, x = CellFile(), torch.randn(5, 4, 3)
    kept.add(x[:2])
    kept.add(x[2:])
    assert torch.equal(kept.all(), x.half())


def test_a_judgement_has_the_attentive_probe_beside_the_others():
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=0)
    images, labels = torch.randint(0, 256, (24, 3, 64, 64), dtype=torch.uint8), torch.arange(24) % 2
    images[labels == 1] //= 3
    loader = [{"images": images[i : i + 8], "labels": labels[i : i + 8]} for i in range(0, 24, 8)]
    results = judge(model, loader, loader, epochs=2)
    assert set(results) == {"pooling", "unreadable", "knn", "linear", "attentive"}
    found = results["attentive"]
    assert found["cells"] == 4 and found["interval"][0] <= found["top1"] <= found["interval"][1]
    assert found["correct"].shape == (24,) and found["protocol"] == "efficient-probe"
    assert found["epochs"] == 100  # one step each: the shortened probe has the same least number of steps
    assert "attentive" not in judge(model, loader, loader, epochs=2, attentive=False)
