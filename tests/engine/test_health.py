"""Each check names its fault soon and is silent on healthy runs."""

import json
import random
import time

import mmcv
import pytest
import torch
from small_recipe import ENCODER

import a2mim
from a2mim.data import TrainLoader
from a2mim.encoder import MaskedEncoder
from a2mim.engine import health, health_hook
from a2mim.engine.health_hook import leak_losses, total
from a2mim.engine.optim import StepWrapper
from a2mim.losses import MaskedL1
from a2mim.masking import BlockMask, InverseSquares
from a2mim.mim import MIM


def raised(folder) -> dict[str, dict]:
    lines = [json.loads(text) for text in (folder / "log.jsonl").read_text().splitlines()]
    return {line["check"]: line for line in lines if line.get("event") == "health"}


def named_at(rule, shares, every=10):
    """The step at which the rule first speaks of a log with these shares loss / baseline; None: never."""
    told = [rule.see({"step": (i + 1) * every, "loss": s, "baseline": 1.0}) for i, s in enumerate(shares)]
    return next(((i + 1) * every for i, one in enumerate(told) if one), None)


def noisy(shares, spread=0.06):
    noise = random.Random(0)
    return [share + noise.gauss(0, spread) for share in shares]


def test_a_loss_that_stays_at_the_yardstick_is_named():
    assert named_at(health.NoLearning(100, 1000, "the rate"), noisy([1.05] * 100)) in range(300, 400)
    fell = noisy([1.6 - 0.05 * i for i in range(11)] + [1.05] * 400)
    assert named_at(health.NoLearning(100, 5000, "the rate"), fell) in range(1000, 3500)
    rises = noisy([1.3, 1.1, 0.9, 0.8] * 10 + [1.2] * 100)
    assert named_at(health.NoLearning(40, 1400, "the rate"), rises) in range(400, 1000)


@pytest.mark.parametrize(
    "shares",
    [
        [1.6] * 5 + [1.02, 0.91, 1.03, 1.3, 0.96, 1.09, 0.82, 0.91, 0.88, 0.9, 0.87, 0.9, 0.85, 0.8],  # falls late
        [1.6, 1.8, 1.9, 1.5, 1.02, *[1.08 - 0.001 * i for i in range(72)]],  # long at the yardstick, falling slowly
        [1.6, 1.5, 1.3, 1.1] + [1.04] * 48,  # it fell soon, and has stayed for a time that is usual
        [0.98] * 100,  # below, by less than the noise
        [None, float("nan"), float("inf"), 0.0] * 25,
    ],
)
def test_a_loss_that_falls_or_lies_below_is_not_named(shares):
    given = noisy(shares, 0.02) if all(shares) else shares
    assert named_at(health.NoLearning(50, 10 * len(shares), "the rate"), given) is None


def test_a_run_that_goes_on_remembers_how_its_loss_fell():
    shares, rules = noisy([1.8 - 0.1 * i for i in range(8)] + [1.04] * 48), []
    for remembered in (30, 0):
        rules.append(health.NoLearning(70, 700, "the rate"))
        for i, share in enumerate(shares):
            line = {"step": 10 * (i + 1), "loss": share, "baseline": 1.0}
            if i < remembered:
                rules[-1].note(line)
            elif i >= 30 and rules[-1].see(line):
                rules[-1].advice = "named"
    assert [rule.advice for rule in rules] == ["the rate", "named"]


def test_a_curve_keeps_its_form_in_few_points():
    curve = health.Curve()
    for i in range(10_000):
        curve.add(float(i))
    assert len(curve.points) <= health.MOST_POINTS and curve.points == sorted(curve.points)
    assert curve.points[0] == (curve.width - 1) / 2 and not curve.falls()
    same = health.Curve([1.0] * 30)
    assert not same.falls() and not health.above_one([1.0] * 5) and health.above_one([1.1] * 5)


def test_three_spikes_within_a_hundred_steps_are_named_with_their_steps_and_images():
    rule = health.Spikes(None)
    norms = [1.0 + 0.1 * (i % 7) for i in range(300)]
    for step in (110, 150, 190):
        norms[step] = 50.0
    told = {i: says for i, norm in enumerate(norms) if (says := rule.see(i, norm, lambda: ["cat.png"]))}
    assert list(told) == [190] and "110, 150, 190" in told[190]
    assert "cat.png" in told[190] and "clip_grad=1.0" in told[190]
    far = health.Spikes(1.0)
    norms = [50.0 if i in (50, 150, 260) else 1.0 for i in range(300)]
    assert not any(far.see(i, norm, list) for i, norm in enumerate(norms))


def test_waiting_for_data_is_named_after_two_hundred_steps():
    def line(step, share):
        return {"step": step, "images_per_second": 100.0, "data_share": share}

    rule = health.Starving(2, 8)
    told = [rule.see(line(step, 0.5)) for step in range(10, 500, 10)]
    assert told.index(next(filter(None, told))) == 19  # the line of step 200
    assert "--num-workers 4 (now 2)" in told[19] and "bench-data" in told[19]
    assert not any(health.Starving(2, 8).see(line(step, 0.2)) for step in range(10, 500, 10))
    full = health.Starving(8, 8)
    assert "reshard" in next(filter(None, (full.see(line(step, 0.9)) for step in range(10, 500, 10))))


@pytest.mark.parametrize(
    ("rank", "first", "sick"), [(2.5, 40, True), (1.2, 30, True), (3.5, 100, True), (20, 40, False), (2.0, 2.5, False)]
)
def test_a_rank_that_falls_is_a_collapse(rank, first, sick):
    assert bool(health.collapse(rank, first)) == sick


def test_memorising_is_measured_against_the_start():
    assert "by heart" in health.memorising(0.2, 0.5, 1.1)
    assert health.memorising(0.2, 0.5, 2.4) is None  # the unseen images were harder from the start
    assert health.memorising(0.4, 0.42, 1.0) is None


@pytest.fixture
def mim():
    torch.manual_seed(0)
    encoder = MaskedEncoder("resnet10t", img_size=32, mask_patch_size=8)
    return MIM(encoder, BlockMask(8, 0.5), [MaskedL1()]).eval()


IMAGES = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_an_architecture_that_lets_hidden_pixels_through_is_a_leak(mim, monkeypatch):
    monkeypatch.setattr(mim, "fill", lambda images, hidden: images)
    monkeypatch.setattr(mim, "encode", lambda images, mask: images)
    monkeypatch.setattr(mim, "decode", lambda features, height, width, mask: features + 0.01)
    with torch.no_grad():
        found = leak_losses(mim, IMAGES, torch.Generator().manual_seed(0))
    assert "lets hidden pixels through" in health.leak(found["own"], found["swapped"], found["simple"])


def test_several_masks_of_an_image_hide_no_leak_and_repeat_no_picture(mim, run):
    mim.masking = InverseSquares(8, mask_ratio=0.5, side=1, masks=3)
    with torch.no_grad():
        found = leak_losses(mim, IMAGES, torch.Generator().manual_seed(0))
    assert {"own", "swapped", "simple"} <= set(found)
    sizes = []
    for masks in (1, 3):
        masking = {"type": "InverseSquares", "mask_patch_size": 8, "side": 1, "masks": masks}
        folder, _ = run(
            f"masks-{masks}", **{"model.masking": masking, "schedule.epochs": 1, "schedule.warmup_epochs": 0}
        )
        sizes.append(mmcv.imread(str(min((folder / "reconstructions").glob("*.png")))).shape)
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("answer", ["colour of the visible", "untrained"])
def test_a_network_that_sees_only_what_is_visible_leaks_nothing(mim, monkeypatch, answer):
    images = IMAGES.clone()
    images[:, :, ::2] //= 4  # some structure
    if answer != "untrained":
        monkeypatch.setattr(mim, "encode", lambda masked, mask: masked.mean((2, 3), keepdim=True).expand_as(masked))
        monkeypatch.setattr(mim, "decode", lambda features, height, width, mask: features)
    with torch.no_grad():
        found = leak_losses(mim, images, torch.Generator().manual_seed(0))
    assert health.leak(found["own"], found["swapped"], found["simple"]) is None
    assert found["seen"] == pytest.approx(found["own"]) and total({"a": torch.tensor(1.0), "b": 2}) == 3


LONG = {"schedule.epochs": 14, "schedule.warmup_epochs": 2, "checkpoint.every_steps": 1000}


def test_a_run_that_learns_nothing_says_so_once_and_on_the_page(run, capsys):
    folder, _ = run("still", **LONG | {"schedule.epochs": 24, "optimizer.base_lr": 0.0})
    found = raised(folder)
    assert set(found) == {"no-learning"} and found["no-learning"]["step"] <= 72
    assert "optimizer.base_lr=0" in found["no-learning"]["says"] and "mask ratio (0.5)" in found["no-learning"]["says"]
    assert capsys.readouterr().out.count("look here: no-learning") == 1
    assert "no-learning: The loss is" in (folder / "report.html").read_text(encoding="utf-8")
    _, _ = run("still", resume=True, **{"schedule.epochs": 25})
    assert len([1 for text in (folder / "log.jsonl").read_text().splitlines() if '"check"' in text]) == 1


def test_a_slow_loader_is_named(run, monkeypatch):
    plain = TrainLoader.__iter__

    def slowly(self):
        for batch in plain(self):
            time.sleep(1.0)
            yield batch

    monkeypatch.setattr(TrainLoader, "__iter__", slowly)
    monkeypatch.setattr(health, "WAITING_STEPS", 6)
    folder, _ = run("slow", **{"schedule.epochs": 3}, **{"checkpoint.every_steps": 1000})
    assert raised(folder)["starving"]["step"] <= 7


def test_gradients_that_jump_are_named_with_their_images(run, monkeypatch):
    plain, steps = StepWrapper.step, []

    def jumping(self, **arguments):
        plain(self, **arguments)
        steps.append(1)
        if len(steps) in (30, 33, 36):
            self.grad_norm *= 1000

    monkeypatch.setattr(StepWrapper, "step", jumping)
    folder, _ = run("jumps", **LONG)
    told = raised(folder)["spike"]
    assert told["step"] == 36 and "steps 30, 33, 36" in told["says"] and ".png" in told["says"]


def test_features_that_lose_their_dimensions_are_named(run, monkeypatch):
    monkeypatch.setattr(health_hook, "SHARE", float("inf"))
    monkeypatch.setattr(health_hook, "QUIET", 0.0)
    plain, seen = health_hook.pooled, []

    def collapsing(model, images):
        seen.append(1)
        features = plain(model, images)
        return features if len(seen) < 3 else features[:1] + 1e-3 * torch.arange(len(features))[:, None]

    monkeypatch.setattr(health_hook, "pooled", collapsing)
    folder, _ = run("falls", **{"schedule.epochs": 3})
    assert raised(folder)["collapse"]["step"] == 6  # the second look after the start
    lines = [json.loads(text) for text in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "effective_rank" in line] == [4, 7]
    assert "Effective rank of the features" in (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def watched(monkeypatch):
    """Fixed images are looked at after each epoch, whatever that costs."""
    monkeypatch.setattr(health_hook, "SHARE", float("inf"))
    monkeypatch.setattr(health_hook, "QUIET", 0.0)


def test_a_run_whose_network_sees_the_hidden_pixels_is_named(run, watched, monkeypatch):
    prepare, decode = MIM.prepare, MIM.decode

    def noting(self, *given, **named):
        found = prepare(self, *given, **named)
        self.__dict__["seen"] = found[0]
        return found

    monkeypatch.setattr(MIM, "prepare", noting)

    def adding(self, *given, **named):
        return 0.01 * decode(self, *given, **named) + self.__dict__.get("seen", 0)

    monkeypatch.setattr(MIM, "decode", adding)
    folder, _ = run("leaks", **{"schedule.epochs": 2})
    assert raised(folder)["leak"]["step"] <= 6 and "check-model" in raised(folder)["leak"]["says"]


def test_a_run_whose_network_knows_its_images_by_heart_is_named(run, labelled, watched, monkeypatch):
    known = []  # the first call of each look is of training images, the second of unseen ones

    def losses(model, images, generator, plain=health_hook.leak_losses):
        known.append(images)
        share = 1.0 if len(known) == 1 else 0.3
        return {name: share * value for name, value in plain(model, images, generator).items() if name == "seen"}

    monkeypatch.setattr(health_hook, "leak_losses", losses)
    quick = {"judge.train_images": 24, "judge.test_images": 12, "judge.k": 3, "judge.every_epochs": None}
    folder, _ = run("heart", data=labelled, **{"schedule.epochs": 2}, **quick)
    assert raised(folder)["memorising"]["step"] <= 6 and "by heart" in raised(folder)["memorising"]["says"]


TINY = "model_args=dict(depth=2, embed_dim=64, num_heads=2)"
HEALTHY = {  # encoder; more of `model`
    "XCiT": (f'name="xcit_nano_12_p16_224", {TINY}', {}),
    "ResNet": ('name="test_resnet"', {}),
    "MAE": (
        f'name="vit_tiny_patch16_224", hide="drop", {TINY}',
        {
            "model.fill": "none",
            "model.decoder": {"type": "TransformerDecoder", "embed_dim": 32, "depth": 1, "num_heads": 2},
            "model.target": {"type": "NormalizedPatches", "patch_size": 16, "channels": "together"},
            "model.losses": [{"type": "MaskedL2"}],
        },
    ),
    "HOG": (
        f'name="vit_tiny_patch16_224", site="patch_embed", token="replace", {TINY}',
        {"model.target": "hog", "model.losses": [{"type": "MaskedL2"}]},
    ),
}
TUNE = """
data = dict(img_size=32)
global_batch_size = 32
optimizer = dict(base_lr=0.005)
schedule = dict(epochs=1, warmup_epochs=0)
checkpoint = dict(every_steps=1000)
log = dict(every_steps=2)
export = []
laptop = {}
"""
SHORT = {"schedule.epochs": 1, "global_batch_size": 32, "checkpoint.every_steps": 1000, "log.every_steps": 2}


@pytest.mark.slow
@pytest.mark.parametrize("kind", HEALTHY)
def test_a_healthy_run_of_any_kind_raises_no_alarm(run, recipe, kind, watched):
    encoder, more = HEALTHY[kind]
    recipe.write_text(recipe.read_text().replace(ENCODER, encoder))
    judged = {"judge.every_epochs": None, "judge.train_images": 64, "judge.test_images": 64}
    healthy = {"optimizer.base_lr": 0.008, "schedule.warmup_epochs": 0.1, "clip_grad": 1.0}
    folder, summary = run("whole", data="photos", laptop=False, **SHORT | judged | healthy | more)
    assert summary["steps"] == 128 and raised(folder) == {}


@pytest.mark.slow
def test_a_healthy_fine_tuning_raises_no_alarm(tmp_path):
    recipe = tmp_path / "tune.py"
    recipe.write_text(TUNE)
    a2mim.finetune(recipe, "test_resnet", "photos", tmp_path / "tuned", laptop=False, device="cpu", num_workers=0)
    assert raised(tmp_path / "tuned") == {}
