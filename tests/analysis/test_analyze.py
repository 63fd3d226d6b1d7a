"""`a2mim analyze` on a few small images: files, figures, going on, and what it refuses."""

import json

import mmcv
import numpy as np
import pytest
import timm
import torch

from a2mim.analysis import analyze, interactions
from a2mim.analysis.analyze import Amount, grid_of, sample_for
from a2mim.analysis.interactions import Sampling
from a2mim.analysis.subjects import Subjects
from a2mim.cli import main

NAME = "resnet10t"


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """train/ and test/ with two classes of 8 and 4 images each, told by their colour."""
    folder = tmp_path_factory.mktemp("labelled")
    generator = np.random.default_rng(1)
    for split, number in (("train", 16), ("test", 8)):
        for i in range(number):
            image = generator.integers(0, 160, (40, 44, 3), np.uint8)
            image[..., i % 2] += 80
            mmcv.imwrite(image, str(folder / split / "ab"[i % 2] / f"{i:02d}.png"))
    return folder


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(analyze, "_rate", lambda subjects: 20.0)
    monkeypatch.setattr(analyze, "SECONDS", {"interactions": 40, "occlusion": 5})


def command(folder, data, *more):
    return main(["analyze", NAME, "--img-size", "32", "--data", str(data), "--out", str(folder), *more])


def test_every_analysis_leaves_numbers_and_figures_of_both_networks(tmp_path, labelled, quick, capsys):
    assert command(tmp_path, labelled, "--device", "cpu") == 0
    assert json.loads((tmp_path / "duplicates.json").read_text())["train"] == 16
    for name in analyze.WHAT[:-1]:
        told = json.loads((tmp_path / f"{name}.json").read_text())
        assert set(told["results"]) == {"trained", "untrained"}
        for figure in told["figures"]:
            assert [line["label"] for line in figure["lines"]] == ["trained", "untrained"] and figure["message"]
        assert (tmp_path / f"{name}-1.png").is_file() and (tmp_path / f"{name}-1.svg").is_file()
    strengths = json.loads((tmp_path / "interactions.json").read_text())["results"]["trained"]["strength"]
    assert np.mean(strengths) == pytest.approx(1)
    said = capsys.readouterr().out
    assert "answers by a linear classifier, fitted on frozen features of 16 training images" in said
    assert "--paper" in said
    assert command(tmp_path, labelled, "--device", "cpu", "--what", "rank,interactions") == 0
    assert "is up to date" in capsys.readouterr().out


def test_a_killed_analysis_goes_on_where_it_was_with_the_same_sample(tmp_path, labelled, quick, monkeypatch):
    arguments = ("--device", "cpu", "--what", "interactions", "--samples", "2")
    assert command(tmp_path / "whole", labelled, *arguments) == 0
    whole, plain = json.loads((tmp_path / "whole" / "interactions.json").read_text()), interactions.interactions_of
    seen = []

    def killed(score, image, label, sampling, number, batch_size, after_order):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(number)
        return plain(score, image, label, sampling, number, batch_size, after_order)

    monkeypatch.setattr(interactions, "interactions_of", killed)
    assert command(tmp_path / "again", labelled, *arguments) == 130
    seen.clear()
    monkeypatch.setattr(analyze, "_rate", lambda subjects: 2000.0)  # a faster moment must not change the sample
    assert command(tmp_path / "again", labelled, *arguments) == 0
    assert seen == [1]  # three of four images were kept
    again = json.loads((tmp_path / "again" / "interactions.json").read_text())
    assert again["results"] == whole["results"] and again["sample"] == whole["sample"]


def test_a_fine_tuned_run_answers_by_its_own_classifier(tmp_path, labelled):
    model = timm.create_model(NAME, num_classes=2)
    folder = tmp_path / "classifier"
    folder.mkdir()
    timm.models._hub.save_for_hf(model, folder, model_config={"label_names": ["a", "b"]}, safe_serialization=True)
    subjects = Subjects(NAME, str(labelled), img_size=32, device="cpu")
    subjects.source = str(tmp_path)
    judged = subjects.classifier(subjects.networks[0])
    assert judged.says == f"the fine-tuned classifier in {folder}"
    images = torch.randn(2, 3, 32, 32)
    assert torch.allclose(judged.score(images), model.eval()(images), atol=1e-5)
    assert "linear classifier" in subjects.classifier(subjects.networks[1]).says
    told = json.loads((folder / "config.json").read_text()) | {"label_names": ["b", "a"]}
    (folder / "config.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match="knows the classes b, a, … and the data have a, b"):
        subjects._own_classifier()
    for fault, words in (
        ({"architecture": "hf-hub:somebody/net"}, "not a model that timm knows"),
        ({"model_args": {"checkpoint_path": "/etc/passwd"}}, "checkpoint_path"),
        ({"num_classes": "2"}, "not a number of classes"),
    ):
        (folder / "config.json").write_text(json.dumps(told | fault))
        with pytest.raises(ValueError, match=words):
            subjects._own_classifier()


def test_images_without_labels_have_spectra_and_ranks_and_no_interactions(tmp_path, labelled, capsys):
    flat = tmp_path / "flat"
    for i, path in enumerate(sorted(labelled.rglob("*.png"))):
        mmcv.imwrite(mmcv.imread(str(path)), str(flat / f"{i}.png"))
    assert command(tmp_path / "out", flat, "--device", "cpu", "--what", "fourier,rank") == 0
    assert command(tmp_path / "out", flat, "--device", "cpu", "--what", "occlusion") == 1
    assert "need a classifier, and so labels" in capsys.readouterr().err
    assert command(tmp_path / "out", flat, "--what", "colour") == 1
    assert "choose among interactions, fourier, occlusion, rank" in capsys.readouterr().err


def test_the_default_sample_fits_the_time_and_paper_is_the_paper_s():
    for rate in (10.0, 100.0, 1000.0):
        sampling, images = sample_for(rate, (14, 14), 1000, Amount())
        floor = Sampling((14, 14), 4, 4).forwards
        assert images * sampling.forwards * 2 / rate <= max(analyze.SECONDS["interactions"], 2 * floor / rate) + 1
    sampling, images = sample_for(10.0, (14, 14), 1000, Amount(paper=True, samples=7))
    assert (sampling.pairs, sampling.contexts, images) == (50, 50, 7)
    assert sampling.forwards == 4 * 50 * 50 * len(sampling.orders)


@pytest.mark.parametrize(("size", "grid"), [((224, 224), [14, 14]), ((64, 64), [8, 8]), ((96, 96), [8, 8])])
def test_the_grid_is_the_paper_s_at_224_px(size, grid):
    subjects = type("Few", (), {"pixels": type("Pixels", (), {"img_size": size})})
    assert grid_of(subjects) == grid
