"""A²MIM, ResNet-200, ImageNet-1k, 300 epochs at 224 px: the reference's recipe.

python tools/pretrain.py configs/a2mim_resnet200.py --data 'imagenet-train-{000000..001023}.tar'
Laptop scale: about 3 minutes.

No Fourier term, as in the reference. Published: 83.0 % top-1 after RSB-A2 fine-tuning (scratch 82.1).
"""

_base_ = "_base_/a2mim.py"

model = dict(
    encoder=dict(name="resnet200", site="layer3", token="scaled"),
    losses=[dict(type="MaskedFocalL1")],
)
data = dict(img_size=224, scale=(0.8, 1.0))
optimizer = dict(base_lr=1.5e-4, token_lr_scale=0.1)
schedule = dict(epochs=300)
sync_batchnorm = True
laptop = {
    "model.encoder.name": "resnet26",
    "model.masking.mask_patch_size": 16,
    "model.masking.mask_ratio": 0.5,
    "model.losses": [dict(type="MaskedL1"), dict(type="FourierLoss", weight=0.1)],
    "data.img_size": 64,
    "global_batch_size": 32,
    "optimizer.base_lr": 3.2e-2,
    "schedule.epochs": 2,
    "schedule.warmup_epochs": 0.2,
    "clip_grad": 1.0,
}
