"""Targets that hold a network: outside the model that is trained, inside its state, on a grid that fits."""

import copy
import re

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from two_processes import start_two

from a2mim.encoder import MaskedEncoder
from a2mim.losses import MaskedSmoothL1
from a2mim.masking import BlockMask
from a2mim.mim import MIM
from a2mim.pixels import IMAGENET_MEAN, IMAGENET_STD
from a2mim.targets import FrozenFeatures, MovingAverage, RandomFeatures, frozen
from a2mim.targets.cells import blend, normalise, on_grid, target_grid

VIT = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """NAME:FILE of a trained network, or what stands for one."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("teacher") / "resnet18.safetensors"
    save_file(timm.create_model("resnet18", num_classes=0).state_dict(), path)
    return f"resnet18:{path}"


def mim(target, name=VIT, size=64, cell=32, **more):
    torch.manual_seed(0)
    encoder = MaskedEncoder(name, img_size=size)
    return MIM(encoder, BlockMask(cell, 0.5), [MaskedSmoothL1()], target=target, **more)


def batch(size=64, seed=0):
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(seed))


def train(model, steps, start=0, total=10):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        sum(model(batch(seed=step), generator=generator).values()).backward()
        optimizer.step()
        model.after_step(step + 1, total)
    return model


def test_a_frozen_teacher_is_the_same_after_training_and_no_part_of_the_model(weights):
    model = mim(FrozenFeatures(weights), size=64, cell=16)
    before = model.target(batch())
    assert before.shape == (4, 512, 4, 4)  # coarser than the student's cells: repeated
    assert torch.equal(before[..., ::2, ::2], before[..., 1::2, 1::2])
    model.train()
    assert not model.target.teacher.training
    train(model, 2)
    assert torch.equal(model.target(batch()), before)
    assert not any(name.startswith("target") for name, _ in model.named_parameters())
    assert copy.deepcopy(model).target.teacher is model.target.teacher
    assert all(p.grad is None for p in model.target.teacher.parameters())


def test_a_frozen_teacher_sees_the_whole_image_in_its_own_normalisation(weights):
    plain = timm.create_model("resnet18", num_classes=0)
    path = weights.partition(":")[2]
    from safetensors.torch import load_file

    plain.load_state_dict(load_file(path))
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    model = mim(FrozenFeatures(weights), mean=mean, std=std)
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    own = (pixels.float() / 255 - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
    expected = plain.eval().forward_features(own)
    expected = F.layer_norm(F.layer_norm(expected.movedim(1, -1), (512,)), (512,)).movedim(-1, 1)  # before and after
    found = model(pixels, mode="predict")["target"]
    assert torch.allclose(found[..., ::2, ::2], expected, atol=1e-4)


def test_a_finer_teacher_is_predicted_cell_by_cell():
    model = mim(FrozenFeatures(VIT), name="resnet18", size=64)
    assert (model.target_stride, model.target_channels) == (16, 192)
    shown = model(batch(), mode="predict")
    assert shown["recon"].shape == shown["target"].shape == (4, 192, 4, 4)
    averaged = mim(FrozenFeatures(VIT, stride=32), name="resnet18", size=64).target
    assert averaged(batch()).shape == (4, 192, 2, 2)
    assert averaged(batch()).mean(1).abs().max() < 1e-5  # normalised again


def test_a_teacher_with_other_cells_sees_the_image_resized():
    assert target_grid((224, 224), 14, 16) == (16, (196, 196))
    assert target_grid((224, 224), 16, 16) == (16, (224, 224))
    assert target_grid((224, 224), 16, 32) == (16, (224, 224))
    assert target_grid((224, 224), 32, 16) == (16, (224, 224))
    assert target_grid((64, 96), 14, 16) == (16, (56, 84))
    with pytest.raises(ValueError, match=r"cells of 16 px and a student with cells of 17.1 px have no common grid"):
        target_grid((240, 240), 16, 17.1)


def test_nothing_is_interpolated_between_cells():
    features = torch.randn(1, 2, 4, 4)
    finer, coarser = on_grid(features, (8, 8)), on_grid(features, (2, 2))
    assert torch.equal(finer, features.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert torch.allclose(coarser[0, 0, 0, 0], features[0, 0, :2, :2].mean())
    both = blend([features, 5 * features + 1], (4, 4), "layer")
    mean = (normalise(features, "layer") + normalise(5 * features + 1, "layer")) / 2
    assert torch.allclose(both, normalise(mean, "layer"))
    assert torch.allclose(normalise(features, "instance").mean((2, 3)), torch.zeros(1, 2), atol=1e-6)


def test_a_random_teacher_is_in_the_state_and_does_not_touch_the_run_s_random_numbers():
    torch.manual_seed(0)
    before = torch.rand(3)
    torch.manual_seed(0)
    target = RandomFeatures(channels=32)
    assert torch.equal(torch.rand(3), before)
    other = RandomFeatures(channels=32, seed=1)
    assert not torch.equal(target(batch()), other(batch()))
    other.load_state_dict(target.state_dict())
    assert torch.equal(target(batch()), other(batch()))


def test_a_teacher_used_again_follows_the_new_student():
    target = FrozenFeatures("test_resnet")
    for name, mean in (("test_vit", (0.5,)), ("test_vit", (0.1, 0.2, 0.3)), ("test_resnet", (0.1, 0.2, 0.3))):
        student = MaskedEncoder(name, img_size=64, in_chans=len(mean)), mean, (0.25,) * len(mean)
        target.attach(*student)
        fresh = FrozenFeatures("test_resnet")
        fresh.attach(*student)
        fresh.teacher.load_state_dict(target.teacher.state_dict())
        images = torch.randn(2, len(mean), 64, 64)
        assert torch.equal(target(images), fresh(images)) and target.stride == fresh.stride
    before = target.teacher
    target.attach(*student)
    assert target.teacher is before  # the same student: nothing is built again


def test_an_average_used_again_follows_the_new_student():
    target = MovingAverage(momentum=0.5)
    train(mim(target, name="test_vit"), 1)
    other = mim(target, name="test_resnet")
    assert torch.equal(other.target(batch()), mim(MovingAverage(), name="test_resnet").target(batch()))
    assert target.step == 0


def test_a_teacher_sees_a_rectangle_unsquashed():
    encoder = MaskedEncoder("test_vit", img_size=(64, 128), mask_patch_size=16)
    for img_size, seen in ((64, (64, 128)), (32, (32, 64)), ([32, 64], (32, 64))):
        target = FrozenFeatures("test_vit2", img_size=img_size)
        target.attach(encoder, (0.5,) * 3, (0.5,) * 3)
        assert target.teacher.img_size == seen and target.stride == 16
        assert target.teacher.outputs[0].layout.grid == (seen[0] // 16, seen[1] // 16)
        assert target(torch.randn(2, 3, 64, 128)).shape[2:] == (4, 8)


@pytest.mark.parametrize(
    ("given", "size", "message"),
    [
        (dict(img_size=(64, 64)), (64, 128), r"img_size=\(64, 64\) .* does not keep the shape .* 64x128 pixels"),
        (dict(img_size=25), (64, 80), r"img_size=25 .*shorter side that is a multiple of 4"),
        (dict(img_size=80), (64, 64), "no common grid"),
        (
            dict(img_size=48, stride=16),
            (64, 64),
            "has 3x3 cells at 48x48 pixels, and the target 4x4 of 16 px",
        ),
        (dict(img_size=0), None, "FrozenFeatures: img_size=0 must be a number of pixels"),
        (dict(img_size=True), None, "FrozenFeatures: img_size=True"),
        (dict(img_size="64"), None, "FrozenFeatures: img_size='64'"),
        (dict(img_size=(64, 64, 64)), None, "or .height, width."),
        (dict(stride=0), None, "FrozenFeatures: stride=0 must be a whole number of at least 1"),
    ],
)
def test_a_size_of_the_teacher_that_does_not_fit_is_one_sentence(given, size, message):
    with pytest.raises(ValueError, match=message):
        target = FrozenFeatures("test_vit2", **given)
        target.attach(MaskedEncoder("test_vit", img_size=size), (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("target", [FrozenFeatures("test_resnet"), MovingAverage(), RandomFeatures(channels=32)])
def test_targets_are_in_float32_where_the_run_is_in_bf16(target):
    model = mim(target, name="test_vit", mean=(0.5,) * 3, std=(0.5,) * 3)
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    plain = model.prepare(pixels, None)[1]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.prepare(pixels, None)[1], plain)
    assert plain.dtype == torch.float32


@pytest.mark.parametrize("momentum", [[], True, None, [0.9, True], "0.9", ["0.9"], [0.9] * 3, {}, float("nan")])
def test_a_momentum_that_is_none_is_one_sentence(momentum):
    with pytest.raises(ValueError, match=r"MovingAverage: momentum=.* must be \"auto\", or one or two numbers"):
        MovingAverage(momentum=momentum)


@pytest.mark.parametrize("given", [dict(depth=0), dict(depth="3"), dict(depth=9), dict(channels=1), dict(stride=0)])
def test_a_random_network_that_cannot_be_is_one_sentence(given):
    with pytest.raises(ValueError, match=rf"RandomFeatures: {next(iter(given))}=.* must be a whole number"):
        RandomFeatures(**given)


def smooth():
    return torch.randn(4, 3, 1, 1, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 64, 64).contiguous()


def test_a_smooth_target_is_refused_inside_a_model_at_the_first_batch_and_not_later():
    model = mim(RandomFeatures(channels=32), name="test_vit")
    with pytest.raises(ValueError, match=r"only 0\.0% of the target's deviation lies within images"):
        model(smooth())
    train(model, 1)
    model(smooth())  # a blank batch in the middle of a run is no fault
    model.attach_target()
    with pytest.raises(ValueError, match="lies within images"):
        model(smooth())


def test_a_frozen_teacher_with_random_weights_is_looked_at_and_a_trained_one_is_not(monkeypatch, weights):
    models = [mim(FrozenFeatures(source), name="test_vit") for source in ("resnet18", weights)]

    def one_cell(maps, grid, norm):
        return blend(maps, grid, norm).mean((2, 3), keepdim=True).expand(-1, -1, *grid)

    monkeypatch.setattr(frozen, "blend", one_cell)
    with pytest.raises(ValueError, match=r"FrozenFeatures: only 0\.0% of the target's deviation lies within images"):
        models[0](batch())
    models[1](batch())


def test_a_compiled_step_on_a_smooth_target_is_refused_behind_it(monkeypatch):
    model = mim(RandomFeatures(channels=32), name="test_vit")
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    model(smooth(), mode="baseline")  # a graph cannot raise
    with pytest.raises(ValueError, match="lies within images"):
        model.after_step(1, 10)


def test_a_random_target_that_is_smooth_is_refused_at_the_first_batch():
    flat = torch.randn(4, 3, 1, 1).expand(-1, -1, 64, 64).contiguous()
    with pytest.raises(ValueError, match=r"only 0\.\d% of the target's deviation lies within images"):
        RandomFeatures(channels=32)(flat + 1e-4 * batch())
    RandomFeatures(channels=32)(batch())


def test_the_average_follows_its_closed_form_and_its_buffers_are_copies():
    model = mim(MovingAverage(momentum=0.9), name="resnet18")
    name = "layer1.0.conv1.weight"
    student, teacher = (
        lambda: dict(model.encoder.model.named_parameters())[name].detach().clone(),
        lambda: dict(model.target.teacher.model.named_parameters())[name].clone(),
    )
    expected = student()
    assert torch.equal(teacher(), expected)
    for step in range(3):
        train(model, 1, step)
        expected = 0.9 * expected + 0.1 * student()
    assert torch.allclose(teacher(), expected, atol=1e-6)
    assert not torch.equal(teacher(), student())
    buffers = dict(model.encoder.model.named_buffers())
    for key, buffer in model.target.teacher.model.named_buffers():
        assert torch.equal(buffer, buffers[key])


OWN_STATISTICS = """
import torch
from a2mim.encoder import MaskedEncoder
from a2mim.processes.group import joined
from a2mim.targets import MovingAverage

with joined("cpu"):
    rank = torch.distributed.get_rank()
    torch.manual_seed(0)
    encoder = MaskedEncoder("test_resnet", img_size=64)
    target = MovingAverage(momentum=0.5)
    target.attach(encoder, (0.5,) * 3, (0.5,) * 3)
    encoder.train()
    encoder(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(rank)))
    target.after_step(encoder, 1, 10)
    torch.save([dict(model.named_buffers()) for model in (encoder.model, target.teacher.model)], f"{out}/{{rank}}.pth")
"""


def test_the_teachers_of_all_processes_have_the_statistics_of_the_first(tmp_path):
    said = start_two(tmp_path, OWN_STATISTICS.format(out=tmp_path), OMP_NUM_THREADS="1")
    (student, teacher), (other, twin) = (torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in (0, 1))
    key = "bn1.running_mean"
    assert not torch.equal(student[key], other[key]), said
    assert all(torch.equal(value, teacher[name]) and torch.equal(value, twin[name]) for name, value in student.items())


def test_the_teacher_starts_from_weights_that_were_loaded_later():
    model = mim(MovingAverage())
    with torch.no_grad():
        model.encoder.model.blocks[0].mlp.fc1.weight.fill_(0.01)
    model.attach_target()
    assert torch.equal(
        model.target.teacher.model.blocks[0].mlp.fc1.weight, model.encoder.model.blocks[0].mlp.fc1.weight
    )


def test_data2vec_s_target_is_the_normalised_mean_of_normalised_block_ends():
    model = mim(MovingAverage(maps=["blocks.10", "blocks.11"]))
    images = batch()
    ends, handles = [], []
    network = copy.deepcopy(model.encoder.model).eval()
    for i in (10, 11):
        handles.append(network.blocks[i].register_forward_hook(lambda m, a, out: ends.append(out)))
    network.forward_features(images)
    normal = [F.layer_norm(end[:, 1:], (192,)) for end in ends]
    expected = F.layer_norm(sum(normal) / 2, (192,)).transpose(1, 2).reshape(4, 192, 4, 4)
    assert torch.allclose(model.target(images), expected, atol=1e-5)


def test_momentum_is_a_number_a_line_or_follows_the_length_of_the_run():
    assert MovingAverage(momentum=0.99).momentum(5, 100) == 0.99
    assert MovingAverage(momentum=(0.996, 1.0)).momentum(50, 100) == pytest.approx(0.998)
    assert MovingAverage().momentum(1, 1000) == pytest.approx(0.97)
    assert MovingAverage().momentum(1, 10**6) == 0.9998
    assert MovingAverage().momentum(1, 20) == 0
    with pytest.raises(ValueError, match=r"momentum=1\.5"):
        MovingAverage(momentum=1.5)


def test_a_resumed_average_goes_on_bit_for_bit(tmp_path):
    whole = train(mim(MovingAverage()), 4)
    half = train(mim(MovingAverage()), 2)
    torch.save(half.state_dict(), tmp_path / "half.pth")
    resumed = mim(MovingAverage())
    resumed.load_state_dict(torch.load(tmp_path / "half.pth", weights_only=True))
    assert resumed.target.step == 2
    resumed.attach_target()  # does not start the teacher again
    train(resumed, 2, start=2)
    states = [m.state_dict() for m in (whole, resumed)]
    extra = [state.pop("target._extra_state") for state in states]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    weights = [e["networks"]["teacher"] for e in extra]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_a_collapsed_teacher_stops_the_run():
    model = mim(MovingAverage(norm="none"))
    with torch.no_grad():
        for p in model.encoder.model.parameters():
            p.zero_()
    model.attach_target()
    with pytest.raises(FloatingPointError, match="they have collapsed to a constant"):
        train(model, 1)


def test_a_target_of_another_network_is_refused_when_it_is_loaded():
    state = mim(MovingAverage()).state_dict()
    with pytest.raises(RuntimeError, match=r"_extra_state|holds"):
        mim("pixels").load_state_dict(state)


def test_a_target_that_states_a_network_of_the_user_s_is_left_in_evaluation_mode():
    class Own(nn.Module):
        channels, stride = 4, 8

        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.BatchNorm2d(4))

        def forward(self, images):
            return self.net(images)

    model = mim(Own()).train()
    assert not model.target.net[1].training
    assert not any(p.requires_grad for p in model.target.parameters())
    assert not model.target(batch()).requires_grad


def test_a_teacher_says_where_its_weights_come_from(tmp_path):
    student = MaskedEncoder("test_vit", img_size=64, mask_patch_size=16)
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), tmp_path / "t.safetensors")
    for source, words in (
        ("test_vit", r"test_vit at 64x64 px, random weights, .* test_vit:FILE, or timm's test_vit:pretrained"),
        (f"test_vit:{tmp_path / 't.safetensors'}", r"t\.safetensors at 64x64 px, (\d+) of \1 tensors of test_vit"),
    ):
        target = FrozenFeatures(source)
        target.attach(student, IMAGENET_MEAN, IMAGENET_STD)
        assert re.search(words, target.describe())
