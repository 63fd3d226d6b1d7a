"""A survey goes on where it was stopped, and its page says what was tried and what was not."""

import json

import pytest
from torch import nn

from a2mim.check import page as survey_page
from a2mim.check import survey
from a2mim.check.certificate import Certificate, certify, takes
from a2mim.cli import main


def test_a_survey_goes_on_where_it_was_stopped_and_tells_errors(tmp_path):
    asked = []

    def examine(name):
        asked.append(name)
        if name == "c":
            raise ValueError("no place for a token\nand more")
        return {"name": name}

    path = tmp_path / "records.jsonl"
    survey.survey(path, ["a", "b"], examine)
    found = survey.survey(path, ["a", "b", "c"], examine)
    assert asked == ["a", "b", "c"]
    assert found["c"]["error"] == "ValueError: no place for a token"
    assert list(survey.read_records(path)) == ["a", "b", "c"]
    assert all("seconds" in json.loads(line) for line in path.read_text().splitlines())


def test_every_name_of_timm_belongs_to_one_family():
    found = survey.families()
    names = [name for names in found.values() for name in names]
    assert len(names) == len(set(names)) > 1300
    assert "resnet18" in found["resnet"] and "xvit_tiny_p16_224" in found["xvit"]


@pytest.fixture(scope="module")
def proved():
    return survey.prove("test_vit", 64)


def test_the_page_counts_what_was_tried_what_failed_and_what_was_not_tried(proved):
    wired = {"test_vit": survey.wire("test_vit"), "test_vit2": {"name": "test_vit2", "error": "ValueError: because"}}
    broken = {"name": "resnet10t", "error": "RuntimeError: broken"}
    page = survey_page.write_page(wired, {"test_vit": proved, "resnet10t": broken})
    assert "**1 of 2 names wired, of 1,3" in page and "; 1 of " in page
    (row,) = [line for line in page.splitlines() if line.startswith("| `vision_transformer` |")]
    assert (
        "| 1 / 2 / " in row
        and "`test_vit`, 64 | `blocks.2`: 16 px tokens + 1 | 64 × 16 | timm's maps, impulses |" in row
    )
    assert next(line for line in page.splitlines() if line.startswith("| `resnet` | 0 / 0 /")).count("see below") == 1
    assert next(line for line in page.splitlines() if line.startswith("| `volo` |")).count("not tried") == 1
    failures = page.split("## What does not work")[1]
    assert "- `test_vit2`: ValueError: because" in failures and "- `resnet10t`, proof: RuntimeError: broken" in failures


def test_a_certificate_states_what_a_size_does_not_allow():
    seen = certify("crossvit_tiny_240", 120, sizes=(96, 240), mask_patch_size=24)
    assert seen.sizes == [120, 240] and seen.refused == [60, 96]
    assert [s.stride for s in seen.sites] == [12, 120 / 7]
    assert seen.resized == ["patch_embed.1"] and not seen.checkpointing and seen.difference < 1e-6
    assert 0.03 < seen.frozen_share < 0.05


def test_a_size_that_a_network_takes_is_known_without_its_weights():
    assert takes("resnet10t", 96) and not takes("efficientformer_l1", 96) and not takes("no_such_model", 96)


class AsksForNumbers(nn.Module):
    """Looks at values on its way, which the meta device does not have."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.stage = nn.Conv2d(8, 16, 3, stride=2, padding=1)

    def forward(self, images):
        features = self.stem(images)
        return self.stage(features if float(features.detach().sum()) > 1e9 else features.relu())


def test_where_the_meta_device_tells_nothing_no_size_is_called_refused():
    seen = certify(f"{__name__}.AsksForNumbers", (64, 96))
    assert (seen.sizes, seen.refused) == ([(64, 96)], [])
    assert "\nsizes         64 x 96\n" in str(seen)


def test_check_model_prints_the_certificate_of_a_timm_name_and_of_an_own_network(capsys):
    assert main(["check-model", "resnet10t", "--img-size", "64", "96", "--in-chans", "5", "--site", "layer2"]) == 0
    said = capsys.readouterr().out
    assert "resnet10t, 4," in said and "64 x 96 px, 5 channels" in said
    assert "'layer2': 128 channels, 8 x 12 cells of 8 px, NCHW (measured by timm's maps)" in said
    assert main(["check-model", "torchvision.models.shufflenet_v2_x0_5", "--img-size", "64"]) == 0
    said = capsys.readouterr().out
    assert "torchvision.models.shufflenet_v2_x0_5" in said and "fc.bias, fc.weight" in said
    assert main(["check-model", "resnet5O"]) == 1
    assert "resnet50" in capsys.readouterr().err
    assert main(["check-model", "resnet10t", "--img-size", "1", "2", "3"]) == 1
    assert main(["check-model", "test_vit", "--img-size", "64", "--model-args", "depth=3"]) == 0
    assert "'blocks.1'" in capsys.readouterr().out
    assert main(["check-model", "test_vit", "--model-args", "depth"]) == 1
    assert "--model-args takes key=value, not 'depth'" in capsys.readouterr().err


def test_a_certificate_is_a_page_of_one_line_a_fact(proved):
    seen = certify("test_vit", 64, sizes=(96,))
    assert isinstance(seen, Certificate)
    words = [line.split()[0] for line in str(seen).splitlines()]
    assert words == ["model", "site", "map", "token", "frozen", "drops", "checkpointing", "sizes", "export"]
