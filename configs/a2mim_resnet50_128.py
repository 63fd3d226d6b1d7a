"""A²MIM at low resolution, ResNet-50, ImageNet-1k, 300 epochs at 128 px; judged and exported at 224 px.

python tools/pretrain.py configs/a2mim_resnet50_128.py --data 'imagenet-train-{000000..001023}.tar'
Laptop scale: about 3 minutes.

`a2mim_resnet50` with a third of the pixels: cells of 16 px, an 8 x 8 grid in place of 7 x 7. Low resolution is
FastMIM's finding (https://arxiv.org/abs/2212.06593, for ViT-B and Swin-B); for this row nothing is published.
docs/performance.md has how much faster it is.
"""

_base_ = "_base_/a2mim.py"

model = dict(
    encoder=dict(name="resnet50", site="layer3", token="scaled"),
    masking=dict(mask_patch_size=16),
    losses=[dict(type="MaskedFocalL1"), dict(type="FourierLoss", weight=0.5, leak=1e-3)],
)
data = dict(img_size=128, scale=(0.8, 1.0))
judge = dict(img_size=224)
optimizer = dict(base_lr=1.5e-4, token_lr_scale=0.1)
schedule = dict(epochs=300)
sync_batchnorm = True
laptop = {
    "model.encoder.name": "resnet26",
    "model.masking.mask_ratio": 0.5,
    "model.losses": [dict(type="MaskedL1"), dict(type="FourierLoss", weight=0.1)],
    "data.img_size": 64,
    "judge.img_size": 96,
    "global_batch_size": 32,
    "optimizer.base_lr": 3.2e-2,
    "schedule.epochs": 2,
    "schedule.warmup_epochs": 0.2,
    "clip_grad": 1.0,
}
