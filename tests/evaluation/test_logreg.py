"""Logistic regression: the optimum of its definition, C chosen inside the training set, and small sets."""

import sys

import numpy as np
import pytest
import torch

from a2mim.evaluation import logreg
from a2mim.evaluation.logreg import Softmax


def sets(n_train=120, n_test=60, dim=5, n_classes=3, noise=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(n_classes, dim, generator=generator)
    found = []
    for n in (n_train, n_test):
        labels = torch.arange(n) % n_classes
        found += [centres[labels] + noise * torch.randn(n, dim, generator=generator), labels]
    return found


@pytest.mark.parametrize("c", [1e-3, 1.0, 100.0])
def test_the_fit_is_the_optimum_of_the_definition(c):
    features, targets, *_ = sets()
    features = features * torch.logspace(-2, 2, 5) + 7  # far from centred and white
    problem = Softmax(features, targets, torch.arange(120), 3, "cpu")
    weights, converged = problem.fit(c, None, 1000, 1e-14)
    assert converged
    free = weights.clone().requires_grad_()
    scores = features.double() @ free[:, :-1].T + free[:, -1]
    loss = c * torch.nn.functional.cross_entropy(scores, targets, reduction="sum") + free[:, :-1].square().sum() / 2
    loss.backward()
    # at the optimum the gradient of the definition, in units of the penalty's curvature, is nearly nothing
    newton = torch.linalg.lstsq(
        torch.eye(5).double() + c * features.double().T @ features.double(), free.grad[:, :-1].T
    )
    assert newton.solution.abs().max() < 1e-4 * max(1, weights[:, :-1].abs().max().item())


def test_it_agrees_with_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, targets, *_ = sets(noise=2.0)
    problem = Softmax(features, targets, torch.arange(120), 3, "cpu")
    for c in (0.01, 1.0, 30.0):
        ours, _ = problem.fit(c, None, 1000, 1e-14)
        theirs = linear_model.LogisticRegression(C=c, max_iter=10_000, tol=1e-9)
        theirs.fit(features.double().numpy(), targets.numpy())
        np.testing.assert_allclose(ours[:, :-1].numpy(), theirs.coef_, atol=1e-4)


@pytest.mark.parametrize("dim", [5, 90])
@pytest.mark.parametrize("kept_bytes", [0, 2**28])
def test_blocks_and_rows_change_nothing(dim, kept_bytes, monkeypatch):
    monkeypatch.setattr(sys.modules[Softmax.__module__], "_KEPT_BYTES", kept_bytes)
    features, targets, *_ = sets(dim=dim)
    rows = torch.arange(0, 120, 2)
    whole, _ = Softmax(features, targets, rows, 3, "cpu").fit(1.0, None, 1000, 1e-12)
    alone, _ = Softmax(features[rows], targets[rows], torch.arange(60), 3, "cpu").fit(1.0, None, 1000, 1e-12)
    torch.testing.assert_close(whole, alone, atol=1e-5, rtol=1e-5)
    problem = Softmax(features, targets, rows, 3, "cpu")
    problem.block = 7
    torch.testing.assert_close(problem.fit(1.0, None, 1000, 1e-12)[0], whole, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("kept_bytes", [0, 2**28])
def test_fewer_images_than_dimensions_give_the_optimum_of_the_definition(kept_bytes, monkeypatch):
    monkeypatch.setattr(sys.modules[Softmax.__module__], "_KEPT_BYTES", kept_bytes)
    features, targets, *_ = sets(n_train=21, dim=60)
    features[1] = features[0]  # and one direction less
    weights, converged = Softmax(features, targets, torch.arange(21), 3, "cpu").fit(2.0, None, 1000, 1e-14)
    free = weights.clone().requires_grad_()
    scores = features.double() @ free[:, :-1].T + free[:, -1]
    loss = 2 * torch.nn.functional.cross_entropy(scores, targets, reduction="sum") + free[:, :-1].square().sum() / 2
    loss.backward()
    assert converged and free.grad.abs().max() < 1e-4
    torch.testing.assert_close(weights[:, -1].sum(), torch.tensor(0.0, dtype=torch.float64), atol=1e-9, rtol=0)


def test_a_small_subset_costs_steps_of_its_own_size():
    features, targets, *_ = sets(n_train=30, dim=500)
    problem = Softmax(features, targets, torch.arange(30), 3, "cpu")
    assert problem.turned.shape == (30, 30) and problem.axes.shape == (500, 30)


def test_a_start_elsewhere_ends_at_the_same_place():
    features, targets, *_ = sets()
    problem = Softmax(features, targets, torch.arange(120), 3, "cpu")
    first, _ = problem.fit(0.01, None, 1000, 1e-13)
    torch.testing.assert_close(
        problem.fit(1.0, first, 1000, 1e-13)[0], problem.fit(1.0, None, 1000, 1e-13)[0], atol=1e-4, rtol=1e-4
    )


def test_c_is_chosen_without_the_test_labels_and_noise_wants_a_stronger_penalty():
    clean, noisy = sets(noise=0.3), sets(noise=6.0, dim=40)
    quiet = logreg(*clean, c_values=9)
    wrong = logreg(*clean[:3], (clean[3] + 1) % 3, c_values=9)
    assert quiet["C"] == wrong["C"] and quiet["top1"] > 90 and wrong["top1"] < 20
    loud = logreg(*noisy, c_values=9)
    assert loud["C"] < 10 and loud["top1"] < quiet["top1"]
    assert quiet["not_converged"] == 0 and quiet["top5"] == 100


def test_the_grid_is_dinov2s():
    chosen = np.log10(logreg(*sets(40, 10))["C"])
    assert np.abs(np.linspace(-6, 5, 45) - chosen).min() < 1e-9  # 45 values from 10^-6 to 10^5


def test_one_image_a_class_one_class_and_labels_of_any_numbers():
    features = torch.eye(4)
    single = logreg(features, torch.tensor([3, 50, 7, 2**40]), features, torch.tensor([3, 50, 7, 2**40]))
    assert single["top1"] == 100 and "middle of the grid" in single["note"] and single["held_out_top1"] is None
    alone = logreg(torch.randn(5, 3), torch.zeros(5, dtype=torch.int64), torch.randn(2, 3), torch.tensor([0, 8]))
    assert alone["correct"].tolist() == [True, False]


def test_features_that_cannot_be_judged_are_refused():
    found = sets()
    found[0][3, 1] = float("nan")
    with pytest.raises(ValueError, match="1 of 120 training images are not finite"):
        logreg(*found)
    with pytest.raises(ValueError, match="same features"):
        logreg(torch.ones(4, 5), torch.arange(4) % 2, *found[2:])
