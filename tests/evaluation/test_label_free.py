"""Label-free numbers on features of known geometry; figures measured once for isotropic noise are the reference."""

import math

import mmcv
import numpy as np
import pytest
import torch
from PIL import Image

from a2mim.batchnorm import batchnorm_statistics
from a2mim.evaluation import evaluate, label_free_run
from a2mim.evaluation import label_free as lf
from a2mim.protocols import read_protocol


def noise(n, d=384, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, d)))


@pytest.mark.parametrize(("n", "rank", "strict"), [(100, 96, 87), (384, 309, 233), (1000, 363, 317), (4000, 379, 366)])
def test_isotropic_noise_has_the_measured_ranks(n, rank, strict):
    z = noise(n)
    assert lf.rankme(z) == pytest.approx(rank, abs=1.5)
    assert lf.effective_rank(z, centred=False) == pytest.approx(rank, abs=1.5)
    assert lf.eigenvalue_rank(z) == pytest.approx(strict, abs=2)


def test_a_common_mean_hides_the_rank_unless_it_is_taken_away():
    z = noise(4000) + 10
    assert lf.rankme(z) == pytest.approx(95, abs=2)
    assert lf.effective_rank(z) == pytest.approx(379, abs=1.5)


def test_rank_and_participation_of_known_spectra():
    basis = torch.linalg.qr(noise(200, 8))[0]
    flat = (basis - basis.mean(0)) @ torch.diag(torch.ones(8, dtype=torch.float64))
    assert lf.effective_rank(flat) == pytest.approx(8, abs=0.1) and lf.participation_ratio(flat) == pytest.approx(
        8, abs=0.1
    )
    line = torch.outer(torch.arange(9.0), torch.ones(5))
    assert lf.effective_rank(line) == pytest.approx(1, abs=1e-6) and lf.participation_ratio(line) == pytest.approx(1)
    assert lf.effective_rank(torch.ones(4, 3)) == 1 and lf.participation_ratio(torch.ones(4, 3)) == 0


@pytest.mark.parametrize(("n", "alpha", "places"), [(500, 0.98, None), (20000, 1.0, None), (500, 1.55, (1, 384))])
def test_alpha_is_that_of_the_spectrum_within_its_range(n, alpha, places):
    z = noise(n) * torch.arange(1, 385, dtype=torch.float64) ** -0.5
    found = lf.alpha_req(z) if places is None else lf.alpha_req(z, *places)
    assert found.alpha == pytest.approx(alpha, abs=0.08 if places is None else 0.15)
    assert (found.first, found.last) == (places or (11, 100)) and 0.8 < found.r2 <= 1


def test_alpha_needs_enough_dimensions():
    assert lf.alpha_req(noise(50, 16)) is None and lf.alpha_req(torch.ones(50, 384)) is None


@pytest.mark.parametrize(("n", "wanted"), [(50, 38), (200, 90), (1000, 119)])
def test_lidar_counts_directions_of_noise_as_well(n, wanted):
    views = noise(n * 10, 128).view(n, 10, 128)
    assert lf.lidar(views) == pytest.approx(wanted, abs=2)
    signal = views + 5 * noise(n, 128, seed=1)[:, None]
    assert lf.lidar(signal) == pytest.approx(wanted, abs=3)
    assert lf.lidar(signal[:2]) < 1.1


def test_lidar_needs_views():
    with pytest.raises(ValueError, match="at least 2 of both"):
        lf.lidar(noise(8)[:, None])


@pytest.mark.parametrize(("dim", "wanted"), [(2, -1.58), (16, -3.51), (384, -3.98)])
def test_uniformity_of_noise_and_of_collapse(dim, wanted):
    z = noise(2000, dim)
    assert lf.uniformity(z) == pytest.approx(wanted, abs=0.03)
    assert lf.uniformity(z + 100, centred=False) > -0.01 and lf.uniformity(z + 100) == pytest.approx(wanted, abs=0.03)
    few = torch.nn.functional.normalize(z[:20] - z[:20].mean(0), dim=1)
    pairs = [math.exp(-2 * float((few[i] - few[j]).square().sum())) for i in range(20) for j in range(20) if i != j]
    assert lf.uniformity(z[:20]) == pytest.approx(math.log(np.mean(pairs)))


def test_alignment_is_the_squared_distance_of_views():
    z = noise(50)
    assert lf.alignment(z, 3 * z) == pytest.approx(0) and lf.alignment(z, -z) == pytest.approx(4)


def test_spatial_rank_is_one_where_all_cells_agree():
    flat = noise(3, 16)[:, None].expand(-1, 9, -1)
    assert lf.spatial_rank(flat) == pytest.approx(1)
    assert 7 < lf.spatial_rank(noise(27, 64).view(3, 9, 64)) < 8.01


def test_collapse_is_told_by_rank_or_by_deviation():
    z = noise(500, 64)
    assert lf.has_collapsed(z, z) == ""
    assert "a tenth" in lf.has_collapsed(torch.outer(z[:, 0], torch.ones(64)) + 1e-3, z)
    assert "deviate" in lf.has_collapsed(1e-5 * z + 1, z)


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="diverged"):
        lf.effective_rank(torch.full((4, 4), torch.nan))


def test_the_protocol_needs_no_label_and_says_what_may_be_compared(tmp_path):
    generator = np.random.default_rng(0)
    for i in range(24):
        Image.fromarray(generator.integers(0, 256, (40, 40, 3), np.uint8)).save(tmp_path / f"{i}.png")
    quick = {"lidar_images": 6, "lidar_views": 2}
    results = evaluate("resnet18", ["label-free"], str(tmp_path), img_size=64, device="cpu", overrides=quick)
    found = {r["protocol"].partition("/")[2]: r for r in results}
    assert set(found) >= {"effective-rank", "rankme", "participation", "uniformity", "spatial-rank"}
    for result in results:
        assert result["interval"][0] <= result["top1_last"] <= result["interval"][1] and result["n_test"] > 5
        assert "24 images and 512 channels" in result["note"] and "5,120" in result["note"]
    assert 1 < found["effective-rank"]["top1_last"] < 24


def test_a_process_that_helps_takes_the_statistics_of_the_first_one(tmp_path, monkeypatch):
    generator = np.random.default_rng(0)
    for i in range(24):
        mmcv.imwrite(generator.integers(0, 256, (36, 36, 3), np.uint8), str(tmp_path / f"{i:02d}.png"))
    protocol, same = read_protocol("label-free"), {"device": "cpu", "img_size": 32, "batch_size": 8}
    first, other = (label_free_run.LabelFree("test_resnet", protocol, tmp_path, **same) for _ in range(2))
    asked = []
    monkeypatch.setattr(label_free_run, "spread", lambda *request: asked.append(request[:2]) or request[2](0, 1))
    features = first.features()
    before = {key: value.clone() for key, value in batchnorm_statistics(other.encoder.model).items()}
    monkeypatch.setattr(label_free_run, "calibrate_batchnorm", None)  # only the first process calibrates
    ((name, arguments),) = asked
    parts = list(other.helpers()[name](*arguments)(0, 1))
    assert torch.equal(torch.cat([part.found["default"] for part in parts]), features)
    after = batchnorm_statistics(other.encoder.model)
    assert any(not torch.equal(before[key], after[key]) for key in before)
