import pytest
from PIL import Image

import a2mim
from a2mim.data import make_shards
from a2mim.engine.assembly import open_sets
from a2mim.engine.pretrain_settings import PretrainData


@pytest.fixture
def pipe(tmp_path):
    """One shard that a shell command writes."""
    images = tmp_path / "images"
    images.mkdir()
    for i in range(4):
        Image.new("RGB", (32, 32), (i, 0, 0)).save(images / f"{i}.png")
    made = make_shards(images, tmp_path / "shards")
    return f"pipe:cat {made['pattern']}"


def test_both_sets_are_opened_with_the_access_that_was_given(pipe, tmp_path):
    settings = PretrainData()
    with pytest.raises(ValueError, match="--allow-pipe"):
        open_sets(pipe, None, settings, a2mim.Access(cache_dir=tmp_path / "cache"))
    allowed = a2mim.Access(allow_pipe=True, cache_dir=tmp_path / "cache")
    with pytest.raises(ValueError, match="has a label"):  # images without labels cannot judge; the pipe has been opened
        open_sets(pipe, pipe, settings, allowed)
    assert len(open_sets(pipe, None, settings, allowed)[0]) == 4


def test_pretrain_hands_its_access_on(recipe, pipe, tmp_path):
    """The refusal of pipes is the default's; a run with the access that allows them is trained."""
    folder = tmp_path / "run"
    settings = {"schedule.epochs": 1, "schedule.warmup_epochs": 0, "global_batch_size": 4}
    with pytest.raises(ValueError, match="--allow-pipe"):
        a2mim.pretrain(recipe, pipe, folder, device="cpu", **settings)
    allowed = a2mim.Access(allow_pipe=True, cache_dir=tmp_path / "cache")
    assert a2mim.pretrain(recipe, pipe, folder, device="cpu", access=allowed, **settings)["status"] == "finished"


def test_finetune_hands_its_access_on(pipe, tmp_path):
    allowed = a2mim.Access(allow_pipe=True, cache_dir=tmp_path / "cache")
    with pytest.raises(ValueError, match="--allow-pipe"):
        a2mim.finetune("configs/finetune/mae_finetune.py", "vit_tiny_patch16_224", pipe, tmp_path / "run")
    with pytest.raises(ValueError, match="label"):
        a2mim.finetune(
            "configs/finetune/mae_finetune.py", "vit_tiny_patch16_224", pipe, tmp_path / "run", access=allowed
        )
