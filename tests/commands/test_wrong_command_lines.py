"""Wrong command lines: each is one line on stderr, a status that is not 0, and nothing written."""

import shlex
import sys

import pytest

from a2mim.cli import main

RECIPE = """
model = dict(encoder=dict(name="xcit_nano_12_p16_224"), masking=dict(type="BlockMask", mask_patch_size=16),
             losses=[dict(type="MaskedL1")])
data = dict(img_size=32)
global_batch_size = 8
schedule = dict(epochs=2, warmup_epochs=0)
laptop = {"schedule.epochs": 1}
"""

# settings: checked before torch is imported
SETTINGS = """
nonsense=1
optimizer.lr=1
optimizer.base_lr=-1
optimizer.base_lr=fast
optimizer.base_lr=nan
optimizer.base_lr=1e999
optimizer.betas=0.9
optimizer.betas=(0.9,)
optimizer.betas=(0.9,1.0)
optimizer.weight_decay=-0.1
optimizer.type=3
optimizer=adamw
schedule.epochs=0
schedule.epochs=1.5
schedule.epochs=true
schedule.warmup_epochs=2
schedule.warmup_epochs=-1
schedule.type=linear
schedule.warmup=middle
schedule.decay_epochs=3
schedule.decay_epochs=[0]
global_batch_size=0
global_batch_size=-8
global_batch_size=None
accumulate=0
accumulate=1.0
clip_grad=0
clip_grad=big
amp=fp8
amp=True
ema=2
ema=0
compile=yes
channels_last=1
seed=-1
seed=1.5
checkpoint.every_steps=0
checkpoint.keep=0
checkpoint.kept=3
log.every_steps=0
log.pictures=1
log.rows=0
judge.k=0
judge.every_epochs=0
judge.images=2
data.img_size=0
data.img_size=33
data.img_size=None
data.bits=12
data.mean=0.5
data.mean=(0.5,0.5)
data.std=(0,1,1)
data.scale=(1,0.5)
data.scale=(0,2)
data.hflip=2
data.interpolation=nearest
data.value_range=(1,1)
data.in_chans=4
data.transforms=flip
model.masking=block
model.masking.mask_patch_size=12
model.losses=[]
model.losses=MaskedL1
model.encoder=resnet
model.encoder.name=3
model.encoder.img_size=48
model.encoder.img_size=None
model.encoder.in_chans=1
export=timm
laptop=1
init_from=3
a.b.c=1
""".strip().splitlines()

LINES = """
pretrain missing.py
pretrain recipe.py --cfg-options seed
pretrain recipe.py --cfg-options =3
pretrain recipe.py --next-epoch
pretrain recipe.py --resume
pretrain recipe.py --resume --work-dir nowhere
pretrain recipe.py --resume auto
pretrain recipe.py --data nowhere
pretrain recipe.py --data empty
pretrain recipe.py --data 'shards-{0..3}.tar'
pretrain recipe.py --data photos --device tpu
pretrain recipe.py --data photos --num-workers -1
pretrain broken.py
pretrain finetune/mae_finetune
pretrain recipe.py --data photos --cfg-options optimizer.type=adamww
pretrain recipe.py --data photos --cfg-options model.encoder.name=xcit_nanoo
pretrain recipe.py --data photos --cfg-options model.encoder.site=nowhere
pretrain recipe.py --data photos --cfg-options model.masking.type=Blocks
pretrain recipe.py --data photos --cfg-options model.encoder.maps=3
pretrain recipe.py --data photos --cfg-options model.encoder.drop_path_rate=3
pretrain recipe.py --data photos --cfg-options model.fill=None
pretrain recipe.py --data photos --cfg-options model.target=None
pretrain recipe.py --data photos --cfg-options 'model.target={"type": "RandomFeatures", "stride": 128}'
pretrain recipe.py --data photos --cfg-options 'model.losses=[{"type": "FourierLoss", "alpha": "x"}]'
pretrain recipe.py --data photos --cfg-options model.masking.mask_ratio=1.5
pretrain recipe.py --data photos --cfg-options 'export=["tim"]'
pretrain recipe.py --data photos --init-from nowhere.pth
finetune
finetune recipe.py resnet18
finetune mae-finetune
finetune mae-finetune nowhere --data photos
finetune mae-finetune resnet18 --data photos --label-fraction 2
finetune mae-finetune resnet18 --data photos --per-class 0
finetune finetune/mae_finetune resnet18 --protocol rsb-a2
finetune mae-finetune resnet18 --cfg-options mix.mixup=-1
finetune mae-finetune resnet18 --cfg-options loss.type=l2
finetune mae-finetune resnet18 --cfg-options labels.subset=[]
finetune mae-finetune resnet18 --cfg-options 'export=["onnx"]'
finetune dino-knn resnet18
evaluate
evaluate nowhere photos
evaluate resnet18 photos --protocol dino-knm
evaluate resnet18 photos --set dino-knn.k=many --protocol dino-knn
evaluate resnet18 nowhere
knn resnet18 --data nowhere --test-data photos
knn nowhere --data photos --test-data photos
linear-probe resnet18 --data empty --test-data photos
export nowhere
export resnet18 --to onxx
verify nowhere
verify empty
embed nowhere photos --out e
embed resnet18 nowhere --out e
shards make nowhere out
shards make empty out
shards check nowhere.tar
shards index nowhere.tar
bench-data nowhere
measure-stats nowhere
check-model resnet1
check-model resnet18 --site nowhere
check-model resnet18 --model-args depth
report nowhere
compare nowhere elsewhere
recipes --copy nothing
settings optimizer.lr
""".strip().splitlines()

USAGE = """
pretend
pretrain
pretrain recipe.py --dat photos
pretrain recipe.py --seed x
pretrain recipe.py --resume=always
pretrain recipe.py --num-workers many
finetune a.py b c
finetune a.py b --label-fraction 0.1 --per-class 3
knn resnet18
embed resnet18 photos
shards
export
""".strip().splitlines()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a recipe, a broken one and an empty folder; returns what lies in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["a2mim"])
    (tmp_path / "recipe.py").write_text(RECIPE)
    (tmp_path / "broken.py").write_text("model = dict(\n")
    (tmp_path / "empty").mkdir()

    def listing():
        return sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if "__pycache__" not in str(path))

    return listing


def check(line, here, capsys):
    before = here()
    assert main(shlex.split(line)) == 1, line
    said = capsys.readouterr().err.splitlines()
    problems = [text for text in said if not text.startswith(("warning: ", "note: "))]
    assert len(problems) == 1 and problems[0].startswith("error: "), said
    assert len(problems[0]) > len("error: ") + 15
    assert here() == before


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_wrong_setting_is_one_line(setting, here, capsys):
    check(f"pretrain recipe.py --cfg-options {shlex.quote(setting)}", here, capsys)


@pytest.mark.parametrize("line", LINES)
def test_a_wrong_command_line_is_one_line(line, here, capsys):
    check(line, here, capsys)


@pytest.mark.parametrize("line", USAGE)
def test_what_argparse_refuses_has_its_status(line, here, capsys):
    before = here()
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(line))
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err.splitlines()[-1]
    assert here() == before
