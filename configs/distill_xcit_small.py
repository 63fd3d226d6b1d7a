"""A frozen teacher's features, XCiT-S12/16, ImageNet-1k, 300 epochs at 224 px.

python tools/pretrain.py configs/distill_xcit_small.py --data 'imagenet-train-{000000..001023}.tar'
Laptop scale: about 3 minutes.

LayerNorm of the teacher's patch features, smooth L1, blocks of 40 %: MaskDistill's recipe, https://arxiv.org/abs/2205.09616,
which has no XCiT. The teacher sees the whole image at 196 px, so that its grid is the student's. Any source works:
--cfg-options model.target.source=RUN. Without --data nothing is downloaded: the teacher is a random CNN.
"""

_base_ = "_base_/method.py"

model = dict(
    encoder=dict(name="xcit_small_12_p16_224", site="auto", token="add"),
    masking=dict(type="BEiTBlocks", mask_patch_size=16, mask_ratio=0.4),
    fill="mean",
    decoder="linear",
    target=dict(type="FrozenFeatures", source="vit_base_patch14_dinov2.lvd142m:pretrained"),
    losses=[dict(type="MaskedSmoothL1")],
)
data = dict(img_size=224, scale=(0.67, 1.0), interpolation="bicubic")
global_batch_size = 2048
optimizer = dict(base_lr=1.5e-4, betas=(0.9, 0.999))
schedule = dict(epochs=300, warmup_epochs=10)
clip_grad = 3.0
laptop = {
    "model.encoder.name": "xcit_nano_12_p16_224",
    "model.masking.min_cells": 2,
    "model.target": dict(type="RandomFeatures"),
    "data.img_size": 64,
    "global_batch_size": 32,
    "optimizer.base_lr": 8e-3,
    "schedule.epochs": 4,
    "schedule.warmup_epochs": 0.4,
    "clip_grad": 1.0,
}
