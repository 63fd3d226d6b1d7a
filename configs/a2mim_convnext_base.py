"""A²MIM, ConvNeXt-B, ImageNet-1k, 300 epochs at 224 px: the reference's recipe.

python tools/pretrain.py configs/a2mim_convnext_base.py --data 'imagenet-train-{000000..001023}.tar'
Laptop scale: about 3 minutes.

As a2mim_convnext_tiny, with a larger network. Published: 84.1 % top-1 after fine-tuning (scratch 83.5).
"""

_base_ = "_base_/a2mim.py"

model = dict(
    encoder=dict(
        name="convnext_base",
        model_args=dict(head_norm_first=True),
        site="stages.3.downsample",
        token="scaled",
        token_std=0,
    ),
    losses=[dict(type="MaskedFocalL1")],
)
data = dict(img_size=224, scale=(0.8, 1.0))
optimizer = dict(base_lr=1.5e-4, token_lr_scale=0.1)
schedule = dict(epochs=300)
laptop = {
    "model.encoder.name": "convnext_atto",
    "model.masking.mask_patch_size": 16,
    "model.masking.mask_ratio": 0.5,
    "model.losses": [dict(type="MaskedL1"), dict(type="FourierLoss", weight=0.1)],
    "data.img_size": 64,
    "global_batch_size": 32,
    "optimizer.base_lr": 8e-3,
    "schedule.epochs": 4,
    "schedule.warmup_epochs": 0.4,
    "clip_grad": 1.0,
}
