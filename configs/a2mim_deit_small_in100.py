"""A²MIM, DeiT-S/16, ImageNet-100, 800 epochs at 224 px: the reference's recipe.

python tools/pretrain.py configs/a2mim_deit_small_in100.py --data 'imagenet-train-{000000..001023}.tar'
Laptop scale: about 3 minutes.

--data is ImageNet-100 here. The token is added before the eighth block (the reference's layer 8; its other choice is
0), and a 5x5 depthwise convolution stands before the linear decoder.
"""

_base_ = "_base_/a2mim.py"

model = dict(
    encoder=dict(name="deit_small_patch16_224", site="blocks.6", token="add"),
    decoder="conv_neck",
    losses=[dict(type="MaskedL1"), dict(type="FourierLoss", weight=0.1)],
)
data = dict(img_size=224, scale=(0.67, 1.0))
optimizer = dict(base_lr=1e-4)
schedule = dict(epochs=800)
clip_grad = 5.0
laptop = {
    "model.encoder.name": "deit_tiny_patch16_224",
    "model.masking.mask_patch_size": 16,
    "model.masking.mask_ratio": 0.5,
    "data.img_size": 64,
    "global_batch_size": 32,
    "optimizer.base_lr": 8e-3,
    "schedule.epochs": 4,
    "schedule.warmup_epochs": 0.4,
    "clip_grad": 1.0,
}
