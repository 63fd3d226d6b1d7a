"""Which method suits which network: a sample of the matrix, and what its examination sees."""

import json
from dataclasses import replace

import pytest
import torch

from a2mim.check.matrix import Cell, general, read_cells, survey_methods, write_matrix
from a2mim.check.matrix import Member as MatrixMember
from a2mim.check.methods import Bench, Method, Tried, group
from a2mim.check.survey import families
from a2mim.cli import main
from a2mim.engine.rows import shipped_rows
from a2mim.targets import MovingAverage

METHODS = group(shipped_rows())
BY_ROW = {row: method for method in METHODS for row in method.rows}
HIDES = ("simmim_vit_base", "maskfeat_vit_base", "data2vec_vit_base")  # nothing fills the pixels


def test_every_row_is_in_one_method():
    rows = [row for method in METHODS for row in method.rows]
    assert sorted(rows) == sorted(shipped_rows()) and len(METHODS) < len(rows)
    assert BY_ROW["a2mim_xcit"] is BY_ROW["a2mim_xvit"] and BY_ROW["mae_vit_base"] is not BY_ROW["mff_vit_small"]


@pytest.mark.parametrize(
    ("network", "channels", "refused"),
    [
        ("test_vit", 4, ["spark_resnet50"]),
        ("test_resnet", 1, ["mae_vit_base", "mff_vit_small", "localmim_vit_base", *HIDES]),
        ("test_convnext", 3, ["mae_vit_base", "mff_vit_small", "localmim_vit_base"]),
    ],
)
def test_a_sample_of_the_matrix(network, channels, refused):
    bench = Bench(network, in_chans=channels)
    verdicts = {method.name: bench.try_method(method) for method in METHODS}
    assert [one.reason for one in verdicts.values() if one.verdict == "failed"] == []
    assert {name for name, one in verdicts.items() if one.verdict == "refused"} == {BY_ROW[r].name for r in refused}
    assert all(one.reason for one in verdicts.values() if one.verdict == "refused")


def row(**changes) -> Method:
    parts = {
        "encoder": {"name": "any", "site": "auto", "token": "add"},
        "masking": {"type": "BlockMask", "mask_patch_size": 16, "mask_ratio": 0.5},
        "losses": [{"type": "MaskedL1"}],
    }
    return Method("mine", ["mine"], parts | changes)


def test_hidden_pixels_that_pass_by_the_token_are_found():
    assert Bench("test_resnet", 64).try_method(row()).verdict == "proven"
    leaking = Bench("test_resnet", 64).try_method(row(fill="none"))
    assert leaking.verdict == "refused" and "fill='mean' keeps them out" in leaking.reason


def test_a_parameter_without_gradient_and_an_error_are_faults(monkeypatch):
    bench = Bench("test_resnet", 64)
    bench.encoder(token="add", maps="auto")._current_mask = lambda: None  # the token goes nowhere
    found = bench.try_method(row())
    assert found.verdict == "failed" and "no gradient in encoder.tokens.0" in found.reason
    monkeypatch.setattr("a2mim.check.methods.faults_of_training", lambda *_: 1 / 0)
    broken = Bench("test_resnet", 64).try_method(row())
    assert (broken.verdict, broken.reason) == ("failed", "ZeroDivisionError: division by zero")


def test_a_network_whose_moving_average_answers_a_constant_is_refused_by_the_target(monkeypatch):
    def constant(self, images):
        self.spread = torch.tensor(1e-8)
        return torch.zeros(len(images), self.channels, images.shape[2] // self.stride, images.shape[3] // self.stride)

    monkeypatch.setattr(MovingAverage, "forward", constant)
    found = Bench("test_vit", 64).try_method(BY_ROW["data2vec_vit_base"])
    assert found.verdict == "refused" and "differ by 1e-08 over the batch" in found.reason


def test_a_survey_goes_on_and_its_page_has_no_silent_cell(tmp_path, monkeypatch):
    monkeypatch.setattr("a2mim.check.methods.SIZES", (64,))
    path, methods = tmp_path / "methods.jsonl", [row(), Method("other", ["other", "more"], row(fill="none").parts)]
    members = [MatrixMember("resnet", "test_resnet", 1, None)]
    survey_methods(path, methods[:1], members)
    cells = survey_methods(path, methods, members)
    assert len(path.read_text().splitlines()) == 2 == len(read_cells(path))
    assert all(json.loads(line)["family"] == "resnet" for line in path.read_text().splitlines())
    page = write_matrix(methods, cells)
    assert f"{2 * len(families())} cells, 1 proven, 1 refused" in page
    assert "| `resnet` | `test_resnet`, 64 | yes | no 1 |" in page
    assert "2. `other`, `more`" in page and "| `volo` | not tried | – | – |" in page
    (reason,) = page.split("## Reasons")[1].strip().splitlines()
    assert reason.startswith("1. Hidden pixels change its maps") and "test_resnet" not in reason
    stale = [replace(cell, tried=replace(cell.tried, network="resnet10t")) for cell in cells]
    gone = replace(cells[0], family="no_family")
    other = replace(cells[0], tried=replace(cells[0].tried, method="no method"))
    assert write_matrix(methods, [*stale, gone, other, *cells]) == page  # the page counts what it shows


def test_reasons_that_differ_in_a_network_s_own_names_are_one():
    told = [
        "net_a: hidden pixels change its maps by 3.8% of the largest feature, as they pass by the token ('layer3')",
        "net_b: hidden pixels change its maps by 0.2% of the largest feature, as they pass by the token ('s.2')",
    ]
    assert len({general(text, text[:5]) for text in told}) == 1
    one = Cell("f", Tried("n", "m", "proven", img_size=[64, 64], cell=32, site="x"), 4, 1.5)
    assert Cell.of(one.to_json()) == one


def test_the_command_says_a_verdict_a_method_or_one_sentence(capsys):
    assert main(["check-model", "test_vit", "--methods", "--img-size", "64", "--model-args", "depth=3"]) == 0
    said = capsys.readouterr().out
    assert said.count("proven") == len(METHODS) - 1 and said.count("refused") == 1
    assert "spark_convnext_small, spark_resnet50" in said and "64 px, cells of 16 px" in said
    assert main(["check-model", "resnet5O", "--methods"]) == 1
    assert "resnet50" in capsys.readouterr().err


def test_the_command_answers_in_json_and_refuses_what_it_would_leave_out(capsys, monkeypatch):
    one = Tried("test_vit", "mae", "refused", "it is a test", [64, 64], 16)
    monkeypatch.setattr("a2mim.check.methods.group", lambda rows: [Method("mae", ["mae", "mae_too"], {})])
    monkeypatch.setattr("a2mim.check.methods.try_methods", lambda *_: [one])
    assert main(["check-model", "test_vit", "--methods", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told["verdict"] == "refused" and told["reason"] == "it is a test" and told["rows"] == ["mae", "mae_too"]
    for option in (["--site", "blocks.2"], ["--mask-patch-size", "16"]):
        assert main(["check-model", "test_vit", "--methods", *option]) == 1
        assert "--methods chooses site and cells" in capsys.readouterr().err
