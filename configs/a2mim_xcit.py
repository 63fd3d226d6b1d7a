"""A²MIM, XCiT-S12/16, ImageNet-1k, 300 epochs at 224 px.

python tools/pretrain.py configs/a2mim_xcit.py --data 'imagenet-train-{000000..001023}.tar'
Laptop scale: about 3 minutes.

The reference has no XCiT: this is its ViT row (L1, purely additive token) with the token at the middle block.
"""

_base_ = "_base_/a2mim.py"

model = dict(
    encoder=dict(name="xcit_small_12_p16_224", site="auto", token="add"),
    losses=[dict(type="MaskedL1"), dict(type="FourierLoss", weight=0.1)],
)
data = dict(img_size=224, scale=(0.67, 1.0))
optimizer = dict(base_lr=1e-4)
schedule = dict(epochs=300)
clip_grad = 5.0
laptop = {
    "model.encoder.name": "xcit_nano_12_p16_224",
    "model.masking.mask_patch_size": 16,
    "model.masking.mask_ratio": 0.5,
    "data.img_size": 64,
    "global_batch_size": 32,
    "optimizer.base_lr": 8e-3,
    "schedule.epochs": 6,
    "schedule.warmup_epochs": 0.6,
    "clip_grad": 1.0,
}
