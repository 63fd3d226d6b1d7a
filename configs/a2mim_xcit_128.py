"""A²MIM at low resolution, XCiT-S12/16, ImageNet-1k, 300 epochs at 128 px; judged and exported at 224 px.

python tools/pretrain.py configs/a2mim_xcit_128.py --data 'imagenet-train-{000000..001023}.tar'
Laptop scale: about 3 minutes.

`a2mim_xcit` with a third of the pixels: cells of 16 px, an 8 x 8 grid in place of 7 x 7. Low resolution is FastMIM's
finding (https://arxiv.org/abs/2212.06593, for ViT-B and Swin-B); for this row nothing is published. docs/performance.md
has how much faster it is.
"""

_base_ = "_base_/a2mim.py"

model = dict(
    encoder=dict(name="xcit_small_12_p16_224", site="auto", token="add"),
    masking=dict(mask_patch_size=16),
    losses=[dict(type="MaskedL1"), dict(type="FourierLoss", weight=0.1)],
)
data = dict(img_size=128, scale=(0.67, 1.0))
judge = dict(img_size=224)
optimizer = dict(base_lr=1e-4)
schedule = dict(epochs=300)
clip_grad = 5.0
laptop = {
    "model.encoder.name": "xcit_nano_12_p16_224",
    "model.masking.mask_ratio": 0.5,
    "data.img_size": 64,
    "judge.img_size": 96,
    "global_batch_size": 32,
    "optimizer.base_lr": 8e-3,
    "schedule.epochs": 6,
    "schedule.warmup_epochs": 0.6,
    "clip_grad": 1.0,
}
