"""Many heads in one pass: the grid equals separate runs of torch's own SGD, MAE's head equals its published rule."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from a2mim.evaluation.heads import LarsHeads, LinearHeads
from a2mim.evaluation.linear import cosine, schedule
from a2mim.evaluation.passes import TrainingPass
from a2mim.evaluation.probe import Labelled, Stack, TrainingBatch, probe
from a2mim.protocols import read_protocol

CLASSES = 4


def images(n, seed, noise=1.0):
    """Two parts of the same images: one tells the classes apart, the other hardly."""
    centres = torch.randn(CLASSES, 6, generator=torch.Generator().manual_seed(9))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % CLASSES
    good = centres[labels] + noise * torch.randn(n, 6, generator=generator)
    return Labelled({"good": good, "poor": torch.randn(n, 3, generator=generator)}, labels)


def passes(train, batch_size):
    """One pass after another, each in an order of its own, the same for everybody who asks anew."""
    seeds = itertools.count()

    def batches():
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(next(seeds)))
        for rows in order.split(batch_size):
            yield TrainingBatch({part: f[rows] for part, f in train.parts.items()}, train.labels[rows], len(rows))

    return TrainingPass(batches, batch_size, -(-len(train) // batch_size))


def run(stacks, train, held, test, epochs=3, epoch_length=5, batch_size=16, per_iteration=True, **options):
    return probe(
        stacks,
        passes(train, batch_size),
        torch.arange(CLASSES),
        held,
        test,
        epochs,
        lambda epoch: cosine(epoch / epochs),
        epoch_length,
        per_iteration,
        **options,
    )


def torch_run(train, parts, lr, start, epochs, epoch_length, batch_size, per_iteration):
    """A linear layer under torch's SGD and its own cosine schedule, alone."""
    dim = sum(train.parts[part].shape[1] for part in parts)
    layer = torch.nn.Linear(dim, CLASSES)
    with torch.no_grad():
        layer.weight.copy_(start)
        layer.bias.zero_()
    optimiser = torch.optim.SGD(layer.parameters(), lr=lr * batch_size / 256, momentum=0.9, weight_decay=0)
    steps = epochs * epoch_length if per_iteration else epochs
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, eta_min=0)
    stream = itertools.chain.from_iterable(itertools.repeat(passes(train, batch_size)))
    for _ in range(epochs):
        for batch in itertools.islice(stream, epoch_length):
            optimiser.zero_grad()
            features = torch.cat([batch.parts[part] for part in parts], dim=1)
            F.cross_entropy(layer(features), batch.targets).backward()
            optimiser.step()
            if per_iteration:
                schedule.step()
        if not per_iteration:
            schedule.step()
    return layer.weight.detach(), layer.bias.detach()


@pytest.mark.parametrize("per_iteration", [True, False])
def test_every_head_of_a_grid_equals_a_run_of_its_own(per_iteration):
    train, lrs = images(64, 0), [0.1, 2.0, 30.0]
    inputs = {"good": ("good",), "both": ("good", "poor"), "poor": ("poor",)}
    stacks = []
    for name, parts in inputs.items():
        dim = sum(train.parts[part].shape[1] for part in parts)
        stacks.append(Stack(name, parts, LinearHeads(lrs, dim, CLASSES, seed=3), lrs))
    starts = [stack.heads.weight[0].clone() for stack in stacks]
    run(stacks, train, images(20, 1), images(40, 2), epochs=3, epoch_length=6, per_iteration=per_iteration)
    for (stack, start), (h, lr) in itertools.product(zip(stacks, starts, strict=True), enumerate(lrs)):
        weight, bias = torch_run(train, stack.parts, lr, start, 3, 6, 16, per_iteration)
        torch.testing.assert_close(stack.heads.weight[h], weight, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(stack.heads.bias[h, :, 0], bias, atol=2e-5, rtol=1e-4)


def test_the_head_is_chosen_by_held_out_images_and_never_by_the_test():
    lrs = [1e-6, 5.0]

    def result(test):
        stacks = [
            Stack("poor", ("poor",), LinearHeads(lrs, 3, CLASSES), lrs),
            Stack("good", ("good",), LinearHeads(lrs, 6, CLASSES), lrs),
        ]
        return run(stacks, images(64, 0), images(40, 1), test)

    test = images(40, 2)
    found = result(test)
    wrong = result(Labelled(test.parts, (test.labels + 1) % CLASSES))
    assert found["head"] == wrong["head"] == "good" and found["base_lr"] == wrong["base_lr"] == 5.0
    assert found["top1"] > 60 > 30 > wrong["top1"] and found["n_heads"] == 4
    assert found["lr"] == 5.0 * 16 / 256 and found["held_out_top1"] > 60


def test_best_is_the_best_epoch_of_the_chosen_head_and_can_be_left_out():
    def result(epochs, **options):
        lrs = [5.0]
        stacks = [Stack("good", ("good",), LinearHeads(lrs, 6, CLASSES), lrs)]
        return run(stacks, images(64, 0), images(20, 1), images(40, 2), epochs=epochs, per_iteration=False, **options)

    whole = result(4)
    assert whole["best_top1"] >= whole["top1"] and 1 <= whole["best_epoch"] <= 4
    assert "best_top1" not in result(2, track_best=False)


def test_classes_that_training_does_not_have_are_wrong_and_break_nothing():
    test = images(40, 2)
    test.labels[:10] = 77
    lrs = [5.0]
    found = run([Stack("good", ("good",), LinearHeads(lrs, 6, CLASSES), lrs)], images(64, 0), images(20, 1), test)
    assert not found["correct"][:10].any() and found["correct"][10:].any()


def slow_lars(weight, bias, batches, lrs, trust=0.001, momentum=0.9, eps=1e-6):
    """MAE's head, step by step: batch normalisation by hand, gradients by hand, the trust ratio on the weight alone."""
    speeds = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for (x, y), lr in zip(batches, lrs, strict=True):
        normal = (x - x.mean(dim=0)) / (x.var(dim=0, correction=0) + eps).sqrt()
        error = (normal @ weight.T + bias).softmax(dim=1) - F.one_hot(y, CLASSES)
        gradients = [error.T @ normal / len(x), error.mean(dim=0)]
        gradients[0] = gradients[0] * trust * weight.norm() / gradients[0].norm()
        for value, speed, gradient in zip((weight, bias), speeds, gradients, strict=True):
            speed.mul_(momentum).add_(gradient)
            value -= lr * speed
    return weight, bias


def test_maes_head_follows_lars_as_published():
    constants = read_protocol("mae-linear").constants
    train, lrs = images(64, 0), [6.4, 0.5]
    heads = LarsHeads(lrs, 6, CLASSES, constants, seed=1)
    start = heads.weights[0].detach().clone()
    assert start.std().item() == pytest.approx(0.01, rel=0.5) and torch.equal(*(w.detach() for w in heads.weights))
    batches = [(train.parts["good"][rows], train.labels[rows]) for rows in torch.arange(64).split(16)]
    factors = [0.1, 0.5, 1.0, 0.7]
    with torch.no_grad():  # as it is called where features are made
        for (x, y), factor in zip(batches, factors, strict=True):
            heads.step(x, y, factor)
    for h, lr in enumerate(lrs):
        weight, bias = slow_lars(start.clone(), torch.zeros(CLASSES), batches, [f * lr for f in factors])
        torch.testing.assert_close(heads.weights[h].detach(), weight, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(heads.biases[h].detach(), bias, atol=1e-6, rtol=1e-4)
    mean = torch.zeros(6)
    for x, _ in batches:
        mean = 0.9 * mean + 0.1 * x.mean(dim=0)
    torch.testing.assert_close(heads.norm.running_mean, mean)


def test_warm_up_is_linear_and_then_follows_the_cosine():
    factor = schedule({"epochs": 90, "warmup_epochs": 10})
    assert [factor(e) for e in (0, 2.5, 10)] == [0, 0.25, 1]
    assert factor(50) == pytest.approx(0.5 * (1 + math.cos(math.pi * 40 / 80)))
    assert schedule({"epochs": 100})(0) == 1
