"""One builder for all timm models: what is asked for is what is built."""

import ast
from pathlib import Path

import pytest
import timm
import torch

from a2mim.check.survey import families
from a2mim.encoder import MaskedEncoder
from a2mim.engine.classifier import build_classified, rebuild_classified
from a2mim.engine.finetune_settings import Head
from a2mim.weights.loading import load_encoder, read_source
from a2mim.wiring.rates import Rates, measure_rates
from a2mim.wiring.timm_models import build_timm, on_meta

PACKAGE = Path(__file__).parents[2] / "a2mim"
# one name of each family whose default in timm is not 0, and the rate that timm gives it
RESTLESS = {
    "swin_tiny_patch4_window7_224": 0.1,
    "swinv2_tiny_window8_256": 0.1,
    "focalnet_tiny_srf": 0.1,
    "efficientformerv2_l": 0.1,
    "nextvit_small": 0.1,
    "fasternet_l": 0.3,
    "nest_tiny": 0.5,
}


def test_timm_is_called_in_one_place():
    callers = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and "create_model" in ast.dump(node.func):
                callers.add(path.relative_to(PACKAGE).as_posix())
    assert callers == {"wiring/timm_models.py"}


@pytest.mark.parametrize("name", RESTLESS)
def test_no_stochastic_depth_is_none_whatever_timm_s_default(name):
    with torch.device("meta"):
        assert measure_rates(timm.create_model(name)).drop_path >= RESTLESS[name]
        assert measure_rates(build_timm(name).model) == Rates(0.0, 0.0)
        assert measure_rates(build_timm(name, num_classes=10).model) == Rates(0.0, 0.0)


def test_no_model_of_any_family_drops_what_nobody_asked_for():
    kept = {}
    for names in families().values():
        name = min(names, key=len)
        try:
            rates = measure_rates(on_meta(name, num_classes=10))
        except Exception:  # a family that cannot be built on the meta device is not what this test is about
            continue
        if rates != Rates(0.0, 0.0):
            kept[name] = rates
    # Dropout inside these networks' tables of positions is a constant of timm's code, no argument; it is printed.
    assert {name for name in kept if kept[name] != Rates(0.0, 0.125)} == set() and len(kept) <= 2


def test_dropout_of_a_classifier_is_none_unless_it_is_asked_for():
    with torch.device("meta"):
        assert measure_rates(timm.create_model("rexnet_100")).dropout == 0.2
        assert measure_rates(build_timm("rexnet_100", num_classes=10).model) == Rates(0.0, 0.0)
        asked = build_timm("rexnet_100", num_classes=10, model_args={"drop_rate": 0.3}).model
        assert measure_rates(asked).dropout == 0.3
        assert measure_rates(timm.create_model("cpubone_nano")).dropout == 0.1
        assert measure_rates(build_timm("cpubone_nano").model) == Rates(0.0, 0.0)


def test_a_rate_is_the_one_that_was_asked_for():
    with torch.device("meta"):
        asked = build_timm("swin_tiny_patch4_window7_224", drop_path_rate=0.3).model
        typed = build_timm("swin_tiny_patch4_window7_224", model_args={"drop_path_rate": 0.3}).model
        assert measure_rates(asked) == measure_rates(typed) == Rates(pytest.approx(0.3), 0.0)
        with pytest.raises(ValueError, match=r"drop_path_rate=0\.1 and drop_path_rate=0\.3 in model_args contradict"):
            build_timm("swin_tiny_patch4_window7_224", drop_path_rate=0.1, model_args={"drop_path_rate": 0.3})
        with pytest.raises(ValueError, match="densenet121 has no stochastic depth; leave drop_path_rate at 0"):
            build_timm("densenet121", drop_path_rate=0.1)


def test_a_classifier_drops_what_the_recipe_says():
    source = read_source("swin_tiny_patch4_window7_224")
    for rate in (0.0, 0.2):
        model, arguments, _ = build_classified(source, 3, 224, 3, Head(drop_path_rate=rate))
        assert measure_rates(model) == Rates(pytest.approx(rate), 0.0)
        assert measure_rates(rebuild_classified(arguments, rate)) == Rates(pytest.approx(rate), 0.0)
        assert "drop_path_rate" not in arguments["model_args"]


def test_the_size_is_one_number_whoever_asks():
    encoder = MaskedEncoder("vit_tiny_patch16_224", model_args={"depth": 2, "img_size": 64})
    assert encoder.img_size == (64, 64) and encoder.arguments()["model_args"]["img_size"] == [64, 64]
    assert load_encoder("vit_tiny_patch16_224", img_size=64, depth=2)[1]["img_size"] == [64, 64]
    assert build_timm("resnet18", 96).img_size == (96, 96) and not build_timm("resnet18", 96).sized
    with pytest.raises(ValueError, match=r"img_size=.* and img_size=64 in model_args contradict each other: state it"):
        MaskedEncoder("vit_tiny_patch16_224", img_size=96, model_args={"depth": 2, "img_size": 64})


def test_weights_do_not_depend_on_what_was_tried_first():
    for name in ("resnet10t", "densenet121"):  # one takes no img_size, the other no drop_path_rate either
        torch.manual_seed(0)
        ours = build_timm(name, 64).model.state_dict()
        torch.manual_seed(0)
        plain = timm.create_model(name, num_classes=0).state_dict()
        assert all(torch.equal(ours[key], value) for key, value in plain.items())
