"""data2vec, ViT-B/16, ImageNet-1k, 800 epochs at 224 px: features of a moving average of the network itself.

python tools/pretrain.py configs/data2vec_vit_base.py --data 'imagenet-train-{000000..001023}.tar'
Laptop scale: about 3 minutes.

The target is the normalised mean of the last six blocks; 120 of 196 patches are hidden, in blocks. Published
(https://arxiv.org/abs/2202.03555): 84.2 % top-1 after fine-tuning. The learning rate is recalled from the paper. At
laptop scale the momentum follows from the number of steps: 0.9998 would freeze the teacher.
"""

_base_ = "_base_/method.py"

model = dict(
    encoder=dict(name="vit_base_patch16_224", site="patch_embed", token="replace", drop_path_rate=0.2),
    masking=dict(type="BEiTBlocks", mask_patch_size=16, mask_ratio=120 / 196),
    fill="none",
    decoder="linear",
    target=dict(type="MovingAverage", maps=[f"blocks.{i}" for i in range(6, 12)], momentum=0.9998),
    losses=[dict(type="MaskedSmoothL1", beta=2.0)],
)
data = dict(img_size=224, scale=(0.2, 1.0), interpolation="bicubic")
global_batch_size = 2048
optimizer = dict(base_lr=2.5e-4, betas=(0.9, 0.999))
schedule = dict(epochs=800)
clip_grad = 3.0
laptop = {
    "model.encoder.name": "vit_tiny_patch16_224",
    "model.encoder.drop_path_rate": 0.0,
    "model.masking.min_cells": 2,
    "model.target.momentum": "auto",
    "data.img_size": 64,
    "global_batch_size": 32,
    "optimizer.base_lr": 8e-3,
    "schedule.epochs": 4,
    "schedule.warmup_epochs": 0.4,
    "clip_grad": 1.0,
}
