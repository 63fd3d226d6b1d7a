"""A²MIM, CrossViT-S, ImageNet-1k, 300 epochs at 240 px.

python tools/pretrain.py configs/a2mim_crossvit.py --data 'imagenet-train-{000000..001023}.tar'
Laptop scale: about 3 minutes.

The reference has no CrossViT: this is its ViT row (L1, purely additive token). CrossViT sees the image twice: 20 x 20
tokens of 12 px, and 14 x 14 tokens of 16 px of the image resized to 224, filled again after the resize. Each branch has
a token and a decoder of its own: decoding the coarse one alone starves the fine one of gradient. The token enters
behind the second of the three multi-scale blocks: only between these do both branches hand on their maps, and of the
two places it is the nearer one to the ViT row's (7/12 of the depth). Cells of 48 px are 4 x 4 whole fine tokens; coarse
tokens on an edge take the token by their hidden share.
"""

_base_ = "_base_/a2mim.py"

model = dict(
    encoder=dict(name="crossvit_small_240", site="blocks.1", token="add"),
    masking=dict(mask_patch_size=48),
    losses=[dict(type="MaskedL1"), dict(type="FourierLoss", weight=0.1)],
)
data = dict(img_size=240, scale=(0.67, 1.0))
optimizer = dict(base_lr=1e-4)
schedule = dict(epochs=300)
clip_grad = 5.0
laptop = {
    "model.encoder.name": "crossvit_tiny_240",
    "model.masking.mask_patch_size": 24,
    "model.masking.mask_ratio": 0.5,
    "data.img_size": 120,
    "global_batch_size": 32,
    "optimizer.base_lr": 4e-3,
    "schedule.epochs": 1,
    "schedule.warmup_epochs": 0.2,
    "clip_grad": 1.0,
}
