"""A²MIM, LinGlo-B1, ImageNet-1k, 300 epochs at 224 px.

python tools/pretrain.py configs/a2mim_linglo.py --data 'imagenet-train-{000000..001023}.tar'
Laptop scale: about 2 minutes.

The reference has no LinGlo, and ours is a reconstruction. Losses and token are those of the ViT row: the site, the last
map of stride 16, is the output of attention layers behind a LayerNorm, where ResNet's is one of convolutions. As in
ResNet the last stage works on what the token filled in, and the decoder reads its map of stride 32.
"""

_base_ = "_base_/a2mim.py"

model = dict(
    encoder=dict(name="linglo_b1", site="auto", token="add"),
    losses=[dict(type="MaskedL1"), dict(type="FourierLoss", weight=0.1)],
)
data = dict(img_size=224, scale=(0.67, 1.0))
optimizer = dict(base_lr=1e-4)
schedule = dict(epochs=300)
clip_grad = 5.0
laptop = {
    "model.encoder.name": "linglo_b0",
    "model.masking.mask_patch_size": 16,
    "model.masking.mask_ratio": 0.5,
    "data.img_size": 64,
    "global_batch_size": 32,
    "optimizer.base_lr": 8e-3,
    "schedule.epochs": 3,
    "schedule.warmup_epochs": 0.5,
    "clip_grad": 1.0,
}
