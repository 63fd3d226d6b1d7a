"""A²MIM, ResNet-18, ImageNet-1k, 300 epochs at 224 px.

python tools/pretrain.py configs/a2mim_resnet18.py --data 'imagenet-train-{000000..001023}.tar'
Laptop scale: about 4 minutes.

The reference's ResNet-50 row on a smaller network, which it never published a number for.
"""

_base_ = "_base_/a2mim.py"

model = dict(
    encoder=dict(name="resnet18", site="layer3", token="scaled"),
    losses=[dict(type="MaskedFocalL1"), dict(type="FourierLoss", weight=0.5, leak=1e-3)],
)
data = dict(img_size=224, scale=(0.8, 1.0))
optimizer = dict(base_lr=1.5e-4, token_lr_scale=0.1)
schedule = dict(epochs=300)
sync_batchnorm = True
laptop = {
    "model.masking.mask_patch_size": 16,
    "model.masking.mask_ratio": 0.5,
    "model.losses": [dict(type="MaskedL1"), dict(type="FourierLoss", weight=0.1)],
    "data.img_size": 64,
    "global_batch_size": 32,
    "optimizer.base_lr": 3.2e-2,
    "schedule.epochs": 4,
    "schedule.warmup_epochs": 0.4,
    "clip_grad": 1.0,
}
