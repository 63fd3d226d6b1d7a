"""SimMIM, ViT-B/16, ImageNet-1k, 800 epochs at 224 px: another row of the same table.

python tools/pretrain.py configs/simmim_vit_base.py --data 'imagenet-train-{000000..001023}.tar'
Laptop scale: about 2 minutes.

No fill; the token replaces hidden patches right after the patch embedding; plain L1. Source: https://arxiv.org/abs/2111.09886.
Published: 83.8 % top-1 after fine-tuning. Differs: the network is timm's plain ViT, with absolute positions, without
relative position bias and without stochastic depth; the paper's has one relative bias for all blocks, no absolute
positions and drop-path 0.1.
"""

_base_ = "_base_/a2mim.py"

model = dict(
    encoder=dict(name="vit_base_patch16_224", site="patch_embed", token="replace"),
    fill="none",
    losses=[dict(type="MaskedL1")],
)
data = dict(img_size=224, scale=(0.67, 1.0))
optimizer = dict(base_lr=5e-5)
schedule = dict(type="step", epochs=800, decay_epochs=[700])
clip_grad = 5.0
laptop = {
    "model.encoder.name": "vit_tiny_patch16_224",
    "model.masking.mask_patch_size": 16,
    "model.masking.mask_ratio": 0.5,
    "data.img_size": 64,
    "global_batch_size": 32,
    "optimizer.base_lr": 8e-3,
    "schedule.epochs": 4,
    "schedule.warmup_epochs": 0.4,
    "clip_grad": 1.0,
    "schedule.decay_epochs": [3],
}
