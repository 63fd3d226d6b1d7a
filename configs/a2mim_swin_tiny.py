"""A²MIM, Swin-T, ImageNet-1k, 300 epochs at 192 px: the reference's base file, for which it published no number.

python tools/pretrain.py configs/a2mim_swin_tiny.py --data 'imagenet-train-{000000..001023}.tar'
Laptop scale: about 3 minutes.

The token is added right after the patch embedding, on a map of 48x48 cells. Windows of 6, which divide every map at
192 px, and no stochastic depth, as in the reference.
"""

_base_ = "_base_/a2mim.py"

model = dict(
    encoder=dict(name="swin_tiny_patch4_window7_224", model_args=dict(window_size=6), site="patch_embed", token="add"),
    losses=[dict(type="MaskedL1"), dict(type="FourierLoss", weight=0.5)],
)
data = dict(img_size=192, scale=(0.67, 1.0))
optimizer = dict(base_lr=1e-4)
schedule = dict(epochs=300)
clip_grad = 5.0
laptop = {
    "model.encoder.model_args": {},
    "model.masking.mask_patch_size": 16,
    "model.masking.mask_ratio": 0.5,
    "data.img_size": 64,
    "global_batch_size": 32,
    "optimizer.base_lr": 8e-3,
    "schedule.epochs": 1,
    "schedule.warmup_epochs": 0.1,
    "clip_grad": 1.0,
}
