"""Who decays, at which rate, and what a step refuses to do."""

import math

import pytest
import torch

from a2mim.engine.optim import StepWrapper, build_optimizer, build_schedule, parameter_groups
from a2mim.engine.pretrain_settings import PretrainOptimizer
from a2mim.engine.setting_groups import Schedule
from a2mim.registry import MODELS


@pytest.fixture(scope="module")
def models():
    def build(name, token):
        row = {
            "type": "MIM",
            "encoder": {"type": "MaskedEncoder", "name": name, "token": token, "img_size": 32},
            "masking": {"type": "BlockMask", "mask_patch_size": 16},
            "losses": [{"type": "MaskedL1"}],
        }
        return MODELS.build(row)

    return {
        "xcit": build("xcit_nano_12_p16_224", "add"),
        "resnet": build("resnet18", "scaled"),
        "vit": build("vit_tiny_patch16_224", "add"),
    }


def names(model, group):
    wanted = {id(p) for p in group["params"]}
    return [name for name, p in model.named_parameters() if id(p) in wanted]


@pytest.mark.parametrize("which", ["xcit", "resnet", "vit"])
def test_norms_biases_tokens_positions_and_scales_never_decay(models, which):
    decayed, plain, token = parameter_groups(models[which], 0.05, 1.0, 0.1)
    assert [g["weight_decay"] for g in (decayed, plain, token)] == [0.05, 0.0, 0.0]
    assert [g["lr"] for g in (decayed, plain, token)] == [1.0, 1.0, 0.1]
    assert all(p.ndim > 1 for p in decayed["params"])
    exempt = ("bias", "norm", "bn", "gamma", "temperature", "cls_token", "pos_embed", "tokens", "token")
    assert not [n for n in names(models[which], decayed) if any(word in n.split(".")[-1] for word in exempt)]
    assert {n.split(".")[1] for n in names(models[which], token)} == (
        {"tokens", "gammas"} if which == "resnet" else {"tokens"}
    )


def test_every_trainable_parameter_is_in_exactly_one_group_and_frozen_ones_in_none(models):
    for model in models.values():
        grouped = [id(p) for g in parameter_groups(model, 0.05, 1.0, 1.0) for p in g["params"]]
        assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert models["xcit"].encoder.frozen


def test_temperature_of_xcit_does_not_decay_although_timm_would_let_it(models):
    _, plain, _ = parameter_groups(models["xcit"], 0.05, 1.0, 1.0)
    assert sum("temperature" in n for n in names(models["xcit"], plain)) == 12


def test_what_a_backbone_lists_by_a_pattern_does_not_decay(models):
    _, plain, _ = parameter_groups(models["xcit"], 0.05, 1.0, 1.0)  # timm's XCiT lists "pos_embed.*"
    assert "encoder.model.pos_embed.token_projection.weight" in names(models["xcit"], plain)


def optimizer_of(model, **changes):
    settings = {"type": "adamw", "base_lr": 1e-3, "betas": (0.9, 0.95), "weight_decay": 0.05, "token_lr_scale": 0.1}
    return build_optimizer(model, PretrainOptimizer(**settings | changes), global_batch_size=512)


def test_the_rate_scales_with_the_global_batch(models):
    optimizer = optimizer_of(models["resnet"])
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([2e-3, 2e-3, 2e-4])
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.95)


@pytest.mark.parametrize("name", ["adamw", "lamb", "sgd", "lion"])
def test_timm_s_optimisers_are_built_by_name(models, name):
    assert len(optimizer_of(models["resnet"], type=name).param_groups) == 3


def test_an_unknown_optimiser_is_one_sentence(models):
    with pytest.raises(ValueError, match=r"optimizer.type='adamww' cannot be built"):
        optimizer_of(models["resnet"], type="adamww")


def rates(models, settings, steps_per_epoch, total):
    optimizer = optimizer_of(models["resnet"], token_lr_scale=1.0)
    common = {"type": "cosine", "warmup_epochs": 2, "min_lr": 1e-5, "decay_epochs": [], "decay_rate": 0.1}
    schedule = build_schedule(optimizer, Schedule(**common | settings), steps_per_epoch, total)
    found = []
    for step in range(total):
        schedule.step_update(step)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_cosine_warms_up_linearly_and_falls_to_the_least_rate(models):
    found = rates(models, {}, steps_per_epoch=10, total=100)
    for step, lr in enumerate(found):
        if step < 20:
            expected = 2e-3 * step / 20
        else:
            expected = 1e-5 + (2e-3 - 1e-5) * (1 + math.cos(math.pi * (step - 20) / 80)) / 2
        assert lr == pytest.approx(expected), step


def cosine(step, steps, peak=2e-3, least=1e-5):
    return least + (peak - least) * (1 + math.cos(math.pi * step / steps)) / 2


def test_a_warm_up_inside_the_cosine_hides_its_first_part(models):
    found = rates(models, {"warmup": "inside"}, steps_per_epoch=10, total=100)
    expected = [2e-3 * step / 20 if step < 20 else cosine(step, 100) for step in range(100)]
    assert found == pytest.approx(expected)


def test_a_multiplied_warm_up_is_the_product_of_a_line_and_a_cosine(models):
    found = rates(models, {"warmup": "multiplied"}, steps_per_epoch=10, total=100)
    assert found == pytest.approx([min(1, step / 20) * cosine(step, 100) for step in range(100)])


def test_where_the_cosine_begins_is_no_setting_of_a_step_schedule():
    with pytest.raises(ValueError, match=r"warmup=.inside. is for schedule\.type=.cosine. only"):
        Schedule(type="step", warmup="inside")


def test_step_schedule_multiplies_at_the_given_epochs(models):
    found = rates(models, {"type": "step", "decay_epochs": [5, 8], "warmup_epochs": 0}, steps_per_epoch=10, total=100)
    assert [found[s] for s in (0, 49, 50, 79, 80, 99)] == pytest.approx([2e-3, 2e-3, 2e-4, 2e-4, 2e-5, 2e-5])


def test_a_warm_up_does_not_move_the_epochs_of_a_step_schedule(models):
    found = rates(models, {"type": "step", "decay_epochs": [5, 8]}, steps_per_epoch=10, total=100)
    assert [found[s] for s in (10, 20, 49, 50, 79, 80, 99)] == pytest.approx([1e-3, 2e-3, 2e-3, 2e-4, 2e-4, 2e-5, 2e-5])


def one_weight(clip_grad=None, accumulate=1, amp=None):
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    return weight, StepWrapper(torch.optim.SGD([weight], lr=1.0), amp, "cpu", accumulate, clip_grad)


def test_a_loss_that_is_not_finite_is_refused_before_the_weights_change():
    weight, wrapper = one_weight()
    for value in (math.nan, math.inf):
        with pytest.raises(FloatingPointError, match=f"the loss is {value}"):
            wrapper.update_params(weight.sum() * value)
    assert weight.item() == 1.0


def test_a_gradient_that_is_not_finite_is_refused_before_the_weights_change():
    weight, wrapper = one_weight(clip_grad=1.0)
    with pytest.raises(FloatingPointError, match="gradient"):
        wrapper.update_params((weight - 1).abs().sqrt().sum())  # 0, with an infinite slope
    assert weight.item() == 1.0


def test_clipping_bounds_the_norm_and_notes_what_it_was():
    weight, wrapper = one_weight(clip_grad=0.5)
    wrapper.update_params(3 * weight.sum())
    assert wrapper.grad_norm == pytest.approx(3.0)
    assert weight.item() == pytest.approx(0.5, abs=1e-5)


def test_accumulated_pieces_make_one_step_of_their_mean():
    weight, wrapper = one_weight(accumulate=2)
    wrapper.initialize_count_status(torch.nn.Linear(1, 1), 3, 10)
    for factor in (1.0, 3.0):
        assert weight.item() == 1.0
        wrapper.update_params(factor * weight.sum())
    assert weight.item() == pytest.approx(1.0 - 2.0)


def test_autocast_works_on_a_cpu():
    weight, wrapper = one_weight(amp="bf16")
    with wrapper.optim_context(torch.nn.Linear(1, 1)):
        assert (weight[None] @ weight[:, None]).dtype == torch.bfloat16


@pytest.mark.parametrize("wrong", [torch.zeros(1).expand(3, 4), torch.zeros(4, 3).T, torch.zeros(3, 4).to_sparse()])
def test_a_loaded_state_of_a_fused_optimiser_has_its_parameter_s_layout(wrong):
    parameter = torch.nn.Parameter(torch.ones(3, 4))
    wrapper = StepWrapper(torch.optim.AdamW([parameter], fused=True), None, "cpu")
    parameter.grad = torch.ones(3, 4)
    wrapper.optimizer.step()
    saved = wrapper.state_dict()
    saved["optimizer"]["state"][0]["exp_avg"] = wrong
    wrapper.load_state_dict(saved)
    state = wrapper.optimizer.state[parameter]["exp_avg"]
    assert state.stride() == parameter.stride() and state.layout == torch.strided
    assert state.eq(0).all()
