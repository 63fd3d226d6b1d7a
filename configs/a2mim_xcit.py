"""A²MIM, XCiT-S12/16, ImageNet-1k, 300 epochs at 224 px.

python tools/pretrain.py configs/a2mim_xcit.py --data 'imagenet-train-{000000..001023}.tar'
"""

model = dict(
    encoder=dict(name="xcit_small_12_p16_224", site="auto", token="add"),
    masking=dict(type="BlockMask", mask_patch_size=32, mask_ratio=0.6),
    fill="mean",
    decoder="linear",
    target="pixels",
    losses=[dict(type="MaskedL1"), dict(type="FourierLoss", weight=0.1)],
)
data = dict(img_size=224, scale=(0.67, 1.0))
global_batch_size = 2048
optimizer = dict(type="adamw", base_lr=1.5e-4, weight_decay=0.05)
schedule = dict(type="cosine", epochs=300, warmup_epochs=10, min_lr=1e-5)
clip_grad = 5.0
laptop = {
    "model.encoder.name": "xcit_nano_12_p16_224",
    "model.masking.mask_patch_size": 16,
    "data.img_size": 64,
    "global_batch_size": 64,
    "optimizer.base_lr": 4e-3,
    "schedule.epochs": 4,
    "schedule.warmup_epochs": 1,
}
