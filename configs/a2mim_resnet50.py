"""A²MIM, ResNet-50, ImageNet-1k, 300 epochs at 224 px: the reference's recipe.

python tools/pretrain.py configs/a2mim_resnet50.py --data 'imagenet-train-{000000..001023}.tar'
Laptop scale: about 3 minutes.

Published: 80.4 % top-1 after RSB-A2 fine-tuning (scratch 79.8). The reference code averages the spectrum over the
batch: --cfg-options model.losses.1.average=batch; the default here is the paper's formula, per image.
One more difference: the reference's 300-epoch row trains the factor gamma at the full rate and with weight decay; here
gamma has the token's rate and no decay, as in its 100-epoch row.
"""

_base_ = "_base_/a2mim.py"

model = dict(
    encoder=dict(name="resnet50", site="layer3", token="scaled"),
    losses=[dict(type="MaskedFocalL1"), dict(type="FourierLoss", weight=0.5, leak=1e-3)],
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
