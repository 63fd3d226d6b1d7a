"""Neighbours, queues and the contrastive loss, against slow loops."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from two_processes import start_two

from a2mim.encoder import MaskedEncoder
from a2mim.engine.optim import build_refining_optimizer
from a2mim.engine.refine import Head, Queue, Refiner
from a2mim.engine.refine.refiner import encoder_with_last_maps, noise_of
from a2mim.engine.refine_settings import RefineOptimizer
from a2mim.wiring.order import first_parameters, last_maps


def units(number, width, seed):
    return F.normalize(torch.randn(number, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_a_neighbour_is_one_of_the_k_nearest_of_other_samples_and_each_is_chosen():
    queue, k = Queue(12, 8), 3
    kept, ids = units(10, 8, 0), torch.arange(10) % 5  # two places are empty, two embeddings a sample
    queue.put(kept, ids)
    wanted, own = units(4, 8, 1), torch.tensor([0, 1, 2, 77])
    seen = [set() for _ in wanted]
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        for row, found in enumerate(queue.neighbours(wanted, own, k, generator)):
            seen[row].add(int((kept == found).all(1).nonzero()[0, 0]))
    for row in range(4):
        scores = sorted(((float(wanted[row] @ kept[j]), j) for j in range(10) if ids[j] != own[row]), reverse=True)
        assert seen[row] == {j for _, j in scores[:k]}


def test_an_empty_queue_answers_with_the_sample_itself_and_few_entries_are_not_padded_with_empty_places():
    queue, wanted = Queue(6, 4), units(2, 4, 0)
    assert torch.equal(queue.neighbours(wanted, torch.tensor([0, 1]), 3), wanted)
    one = units(1, 4, 5)
    queue.put(one, torch.tensor([0]))
    found = queue.neighbours(wanted, torch.tensor([0, 1]), 3)
    assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], one[0])  # sample 0 may not take its own


def test_the_oldest_leave_first_and_a_batch_larger_than_the_queue_leaves_its_last():
    queue = Queue(4, 2)
    for first in (0, 3):
        queue.put(units(3, 2, first), torch.arange(first, first + 3))
    assert queue.ids.tolist() == [4, 5, 2, 3] and int(queue.pointer) == 2
    queue.put(units(9, 2, 9), torch.arange(10, 19))
    assert sorted(queue.ids.tolist()) == [15, 16, 17, 18]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_loss_is_that_of_a_slow_loop_and_the_look_up_comes_before_the_queue_is_fed(momentum):
    torch.manual_seed(0)
    head = Head(6, queue=16, hidden=8, predicted=8, width=4, momentum=momentum)
    head.queue.put(units(10, 4, 3), torch.arange(100, 110))
    before = {name: value.clone() for name, value in head.queue.state_dict().items()}
    pooled, ids = torch.randn(2, 5, 6), torch.arange(5)
    loss = head(pooled, ids, k=1, temperature=0.2)
    flat = pooled.flatten(0, 1)
    z = (head.slow or head.projector)(flat)
    z, q = F.normalize(z, dim=1), F.normalize(head.predictor(head.projector(flat)), dim=1)
    found = [before["embeddings"][int((z[i] @ before["embeddings"].T)[:10].argmax())] for i in range(10)]
    total = 0.0
    for one, other in ((0, 5), (5, 0)):
        for i in range(5):
            logits = torch.stack([found[one + i] @ q[other + j] for j in range(5)]) / 0.2
            total += float((torch.logsumexp(logits, 0) - logits[i]).detach())
    assert float(loss.detach()) == pytest.approx(total / 10, rel=1e-5)
    torch.testing.assert_close(head.queue.embeddings[10:15], z[:5].detach())  # of the first view
    assert head.queue.ids[10:15].tolist() == ids.tolist()


ONE_OF_TWO = """
import sys
sys.path[:0] = {tests!r}
import torch
from test_refine_heads import head_and_images
from a2mim.processes.group import joined

with joined("cpu"):
    rank = torch.distributed.get_rank()
    head, pooled, ids = head_and_images()
    loss = head(pooled[:, 3 * rank : 3 * rank + 3], ids[3 * rank : 3 * rank + 3], k=1, temperature=0.2)
    loss.backward()
    gradients = [p.grad for p in head.parameters() if p.grad is not None]
    for value in [loss.detach(), *gradients]:  # as DDP shares them
        torch.distributed.all_reduce(value.div_(2))
    if rank == 0:
        torch.save([loss.detach(), *gradients, head.queue.embeddings], {out!r})
"""


def head_and_images():
    torch.manual_seed(0)
    head = Head(6, queue=8, hidden=8, predicted=8, width=4).eval()  # BatchNorm would see half of the images
    return head, torch.randn(2, 6, 6), torch.arange(6)


def test_two_processes_have_the_loss_the_gradients_and_the_queue_of_one(tmp_path):
    program = ONE_OF_TWO.format(
        tests=[str(folder) for folder in Path(__file__).parents[:2]], out=str(tmp_path / "two.pth")
    )
    said = start_two(tmp_path, program, OMP_NUM_THREADS="1")
    assert (tmp_path / "two.pth").is_file(), said
    head, pooled, ids = head_and_images()
    loss = head(pooled, ids, k=1, temperature=0.2)
    loss.backward()
    alone = [loss.detach(), *[p.grad for p in head.parameters() if p.grad is not None], head.queue.embeddings]
    for one, two in zip(alone, torch.load(tmp_path / "two.pth"), strict=True):
        torch.testing.assert_close(one, two)


def test_the_gradient_passes_through_the_prediction_alone():
    torch.manual_seed(0)
    head = Head(6, queue=4, hidden=8, predicted=8, width=4, momentum=0.5)
    head(torch.randn(2, 5, 6), torch.arange(5), k=1, temperature=0.2).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.predictor.parameters())
    assert all(p.grad is None for p in head.slow.parameters())


def test_the_slow_projector_follows_in_closed_form():
    torch.manual_seed(0)
    head = Head(3, queue=4, hidden=4, predicted=4, width=2, momentum=0.9)
    start = head.slow[0].weight.clone()
    with torch.no_grad():
        head.projector[0].weight.fill_(1.0)
    for _ in range(3):
        head.follow()
    torch.testing.assert_close(head.slow[0].weight, 0.9**3 * start + (1 - 0.9**3))


def refiner(name="test_vit", frozen=0.5, **arguments):
    torch.manual_seed(0)
    encoder = encoder_with_last_maps(name, "last_third", img_size=64, **arguments)
    heads = [Head(width, queue=8, hidden=8, predicted=8, width=4) for width in encoder.channels]
    return Refiner(encoder, heads, frozen, (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("name", ["test_vit", "resnet10t", "xcit_nano_12_p16_224", "test_convnext"])
def test_the_first_half_stays_the_rest_learns_and_heads_alone_leave_the_encoder_without_gradient(name):
    model = refiner(name).train()
    images = torch.randint(0, 256, (3, 2, 3, 64, 64), dtype=torch.uint8)
    sum(model(images, torch.arange(3), k=1, heads_only=True).values()).backward()
    assert all(p.grad is None for p in model.encoder.parameters())
    sum(model(images, torch.arange(3), k=1).values()).backward()
    parameters = dict(model.encoder.model.named_parameters())
    assert 0 < len(model.kept) < len(parameters)
    assert all(parameters[key].grad is None for key in (*model.kept, *model.encoder.frozen))
    learning = set(parameters) - set(model.kept) - set(model.encoder.frozen)
    assert learning and all(parameters[key].grad is not None for key in learning)


def test_the_loss_of_heads_that_know_nothing_is_that_of_chance():
    model = refiner().train()
    for head in model.heads:
        torch.nn.init.zeros_(head.predictor[-1].weight)
        torch.nn.init.zeros_(head.predictor[-1].bias)
    losses = model(torch.randint(0, 256, (4, 2, 3, 64, 64), dtype=torch.uint8), torch.arange(4), k=1)
    for value in losses.values():
        assert float(value.detach()) == pytest.approx(math.log(4), rel=1e-5)


def test_layers_are_counted_as_they_run():
    encoder = MaskedEncoder("vit_tiny_patch16_224", img_size=64)
    noise = noise_of(encoder)
    assert last_maps(encoder.model, noise, 1 / 3) == [f"blocks.{i}" for i in (8, 9, 10, 11)]
    kept = first_parameters(encoder.model, noise, 0.5)
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.5.mlp.fc2.weight"} <= set(kept)
    assert not [key for key in kept if key.startswith(("blocks.6.mlp", "blocks.7", "norm."))]
    assert first_parameters(encoder.model, noise, 0.0) == []


@pytest.mark.parametrize(("name", "last"), [("test_vit", "blocks.5."), ("resnet18", "layer4.1.")])
def test_the_last_block_has_one_decay_and_the_heads_have_none(name, last):
    encoder = encoder_with_last_maps(name, "last", img_size=64)
    model = Refiner(encoder, [Head(encoder.channels[-1], 4, 8, 8, 6)], 0.5, (0.5,) * 3, (0.25,) * 3)
    optimizer = build_refining_optimizer(model, RefineOptimizer(), 1e-5, 512)
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    scale = {names[id(p)]: group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    assert {value for key, value in scale.items() if last in key} == {0.65}
    assert {value for key, value in scale.items() if key.startswith("heads")} == {1.0}
    assert {group["weight_decay"] for group in optimizer.param_groups if group["part"] == "heads"} == {0.0, 1e-5}
    assert optimizer.param_groups[0]["lr"] == 2e-4
