"""MaskFeat, ViT-B/16, ImageNet-1k, 300 epochs at 224 px: histograms of gradients.

python tools/pretrain.py configs/maskfeat_vit_base.py --data 'imagenet-train-{000000..001023}.tar'
Laptop scale: about 2 minutes.

The token replaces hidden patches after the embedding; 78 of 196 patches are hidden, in blocks. Published
(https://arxiv.org/abs/2112.09133, ViT-B by mmpretrain): 83.4 % top-1 after fine-tuning. Good to fine-tune, weak as
frozen features (published: k-NN 15.9 %).
"""

_base_ = "_base_/method.py"

model = dict(
    encoder=dict(name="vit_base_patch16_224", site="patch_embed", token="replace"),
    masking=dict(type="BEiTBlocks", mask_patch_size=16, mask_ratio=0.4, min_cells=15),
    fill="none",
    decoder="linear",
    target="hog",
    losses=[dict(type="MaskedL2")],
)
data = dict(img_size=224, scale=(0.5, 1.0), interpolation="bicubic")
global_batch_size = 2048
optimizer = dict(base_lr=2e-4, betas=(0.9, 0.999))
schedule = dict(epochs=300, warmup_epochs=30)
clip_grad = 0.02
laptop = {
    "model.encoder.name": "vit_tiny_patch16_224",
    "model.masking.min_cells": 2,
    "data.img_size": 64,
    "global_batch_size": 32,
    "optimizer.base_lr": 8e-3,
    "schedule.epochs": 4,
    "schedule.warmup_epochs": 0.4,
    "clip_grad": 1.0,
}
