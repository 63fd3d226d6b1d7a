"""k-NN against its definition written as a slow loop, and on the sets that break other implementations."""

import importlib
import math

import pytest
import torch

from a2mim.evaluation import knn
from a2mim.evaluation.knn import nearest

MODULE = importlib.import_module("a2mim.evaluation.knn")  # the package's `knn` is the function
normal = torch.nn.functional.normalize


def slow_knn(train_features, train_labels, test_features, test_labels, k, temperature):
    """The definition, image by image: (top-1 correct, top-5 correct) lists."""
    classes = sorted(set(train_labels.tolist()))
    top1, top5 = [], []
    for query, label in zip(test_features, test_labels.tolist(), strict=True):
        cosines = [torch.nn.functional.cosine_similarity(query, key, dim=0).item() for key in train_features]
        neighbours = sorted(range(len(cosines)), key=lambda i: (-cosines[i], i))[:k]
        votes = dict.fromkeys(classes, 0.0)
        for i in neighbours:
            votes[train_labels[i].item()] += math.exp(cosines[i] / temperature)
        ranked = sorted(classes, key=lambda c: (-votes[c], c))
        top1.append(ranked[0] == label)
        top5.append(label in ranked[: min(5, k)])
    return top1, top5


def random_sets(n_train, n_test, dim, n_classes, seed=0):
    """Classes with a centre each, so that accuracies are neither 0 nor 100."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(n_classes, dim, generator=generator)
    sets = []
    for n in (n_train, n_test):
        labels = torch.randint(n_classes, (n,), generator=generator)
        sets += [centres[labels] + 1.5 * torch.randn(n, dim, generator=generator), labels]
    return sets


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (3, 0.07), (20, 0.07), (20, 1.0)])
def test_it_equals_the_slow_loop(k, temperature):
    sets = random_sets(150, 60, 12, 8)
    top1, top5 = slow_knn(*sets, k, temperature)
    result = knn(*sets, k=k, temperature=temperature)
    assert result["correct"].tolist() == top1
    assert result["top1"] == pytest.approx(100 * sum(top1) / 60)
    assert result["top5"] == pytest.approx(100 * sum(top5) / 60)
    assert 10 < result["top1"] < 95


@pytest.mark.parametrize("k", [1, 2, 3, 5, 7])
def test_ties_in_similarity_and_in_votes_are_settled_as_the_definition_says(k):
    # entries of +-1 in four dimensions: norms and cosines are exact, so ties are exact too
    generator = torch.Generator().manual_seed(3)
    train = torch.randint(2, (40, 4), generator=generator) * 2.0 - 1
    test = torch.randint(2, (30, 4), generator=generator) * 2.0 - 1
    train_labels, test_labels = (torch.randint(6, (n,), generator=generator) for n in (40, 30))
    top1, top5 = slow_knn(train, train_labels, test, test_labels, k, 0.5)
    result = knn(train, train_labels, test, test_labels, k=k, temperature=0.5)
    assert result["correct"].tolist() == top1
    assert result["top5"] == pytest.approx(100 * sum(top5) / 30)


def published_knn(train, train_labels, test, test_labels, k, temperature, n_classes):
    """The arithmetic of DINO's evaluation script, in float32: (top-1, top-5) percentages. It needs five classes."""
    train, test = (torch.nn.functional.normalize(features, dim=1, p=2) for features in (train, test))
    cosines, indices = (test @ train.T).topk(k, largest=True, sorted=True)
    one_hot = torch.zeros(len(test), k, n_classes)
    one_hot.scatter_(2, train_labels[indices][..., None], 1)
    probabilities = (one_hot * (cosines / temperature).exp()[..., None]).sum(dim=1)
    hits = probabilities.sort(dim=1, descending=True, stable=True).indices == test_labels[:, None]
    return [100 * hits[:, :places].sum().item() / len(test) for places in (1, min(5, k))]


@pytest.mark.parametrize("n_classes", [5, 40])
def test_it_agrees_to_the_digit_with_the_published_arithmetic_at_every_k(n_classes):
    sets = random_sets(400, 150, 16, n_classes, seed=4)
    result = knn(*sets, k=20, also_k=(3, 10, 100, 200))
    for k, pair in result["by_k"].items():
        assert pair == pytest.approx(published_knn(*sets, k, 0.07, n_classes), abs=1e-9), k
    assert (result["top1"], result["top5"]) == tuple(result["by_k"][20])
    assert set(result["by_k"]) == {3, 10, 20, 100, 200}


def test_top5_of_fewer_than_five_classes_is_not_an_error():
    sets = random_sets(60, 20, 6, 3)
    result = knn(*sets, k=20)
    assert result["top5"] == 100 and result["n_classes"] == 3
    assert result["top1"] == pytest.approx(100 * sum(slow_knn(*sets, 20, 0.07)[0]) / 20)


@pytest.mark.parametrize("k", [1, 7, 40])
def test_blocks_of_queries_and_of_the_bank_change_nothing(k, monkeypatch):
    # whole numbers in few dimensions: many cosines are equal, also across blocks
    generator = torch.Generator().manual_seed(1)
    bank, queries = (
        torch.randint(-1, 2, (n, 3), generator=generator) + torch.tensor([0.0, 0.0, 3.0]) for n in (90, 31)
    )
    values, rows = nearest(bank, queries, k)
    ordered = (normal(queries) @ normal(bank).T).sort(dim=1, descending=True, stable=True)
    assert torch.equal(rows, ordered.indices[:, :k]) and torch.equal(values, ordered.values[:, :k])
    monkeypatch.setattr(MODULE, "_CHUNK", 8)
    in_blocks = nearest(bank, queries, k, block_bytes=4 * 8 * 5)
    torch.testing.assert_close(in_blocks[0], values)
    # a block of another size may round a cosine otherwise, and so part what is equal: rows are compared up to rounding
    torch.testing.assert_close((normal(queries) @ normal(bank).T).gather(1, in_blocks[1]), values)
    assert all(len(set(line)) == k for line in in_blocks[1].tolist())


def test_a_bank_sorted_by_class_is_merged_as_any_other(monkeypatch):
    sets = random_sets(300, 50, 8, 5)
    order = sets[1].argsort(stable=True)
    sets[:2] = sets[0][order], sets[1][order]
    whole = knn(*sets, k=20)
    monkeypatch.setattr(MODULE, "_CHUNK", 32)
    assert torch.equal(knn(*sets, k=20, block_bytes=4 * 32 * 7)["correct"], whole["correct"])


def test_labels_may_be_any_numbers():
    train, train_labels, test, test_labels = random_sets(120, 50, 10, 7)
    names = torch.tensor([3, 40, 41, 999, 5_000, 123_456, 2**40])
    renamed = knn(train, names[train_labels], test, names[test_labels], k=7)
    assert torch.equal(renamed["correct"], knn(train, train_labels, test, test_labels, k=7)["correct"])


def test_ten_thousand_classes():
    features = torch.randn(10_000, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(10_000)
    result = knn(features, labels, features[:50], labels[:50], k=5)
    assert (result["top1"], result["n_classes"]) == (100, 10_000)


def test_k_above_the_training_set_is_clamped_and_said():
    result = knn(torch.eye(3), torch.arange(3), torch.eye(3), torch.arange(3), k=20)
    assert result["k"] == 3 and "only 3" in result["note"]
    assert "note" not in knn(torch.eye(3), torch.arange(3), torch.eye(3), torch.arange(3), k=3)


def test_one_training_image_and_one_test_image():
    result = knn(torch.ones(1, 4), torch.tensor([7]), torch.ones(1, 4), torch.tensor([7]))
    assert (result["top1"], result["top5"], result["k"]) == (100, 100, 1)


def test_a_class_without_training_images_is_wrong_also_in_top5():
    result = knn(torch.eye(3), torch.tensor([0, 1, 4]), torch.eye(3), torch.tensor([0, 2, 9]), k=3)
    assert result["correct"].tolist() == [True, False, False]
    assert result["top5"] == pytest.approx(100 / 3)


def test_the_length_of_a_feature_does_not_matter():
    sets = random_sets(80, 40, 6, 4)
    scaled = [sets[0] * torch.logspace(-3, 3, 80)[:, None], sets[1], sets[2] * 50, sets[3]]
    assert torch.equal(knn(*scaled)["correct"], knn(*sets)["correct"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s[0].__setitem__((3, 2), float("nan")), "features of 1 of 20 training images are not finite"),
        (lambda s: s[2].__setitem__(0, float("inf")), "features of 1 of 5 test images are not finite"),
        (lambda s: s[0].fill_(0.3), "same features"),
        (lambda s: s[1].__setitem__(slice(0, 4), -1), "4 of 20 training images have no label"),
        (lambda s: s.__setitem__(2, s[2][:, :3]), "dimensions"),
        (lambda s: s.__setitem__(2, s[2][:0]) or s.__setitem__(3, s[3][:0]), "test set is empty"),
        (lambda s: s.__setitem__(1, s[1][:-1]), "do not belong together"),
    ],
)
def test_what_cannot_be_judged_is_refused_in_one_sentence(change, words):
    sets = random_sets(20, 5, 4, 3)
    change(sets)
    with pytest.raises(ValueError, match=words) as caught:
        knn(*sets)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [{"k": 0}, {"temperature": 0.0}, {"temperature": float("nan")}])
def test_constants_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="at least 1"):
        knn(*random_sets(20, 5, 4, 3), **wrong)
