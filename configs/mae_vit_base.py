"""MAE, ViT-B/16, ImageNet-1k, 800 epochs at 224 px.

python tools/pretrain.py configs/mae_vit_base.py --data 'imagenet-train-{000000..001023}.tar'
Laptop scale: about 2 minutes.

Hidden patches leave the sequence; a transformer of width 512 rebuilds their pixels, normalised within each patch.
Published (https://arxiv.org/abs/2111.06377): 83.3 % top-1 and a linear probe of 65.1 % after 800 epochs of mmpretrain,
83.6 and 67.8 % after 1,600 of the authors. Differs: weights and positions start as timm's.
"""

_base_ = "_base_/method.py"

model = dict(
    encoder=dict(name="vit_base_patch16_224", hide="drop"),
    masking=dict(type="BlockMask", mask_patch_size=16, mask_ratio=0.75),
    fill="none",
    decoder=dict(type="TransformerDecoder", embed_dim=512, depth=8, num_heads=16),
    target=dict(type="NormalizedPatches", patch_size=16, channels="together"),
    losses=[dict(type="MaskedL2")],
)
data = dict(img_size=224, scale=(0.2, 1.0), interpolation="bicubic")
optimizer = dict(base_lr=1.5e-4)
schedule = dict(epochs=800)
laptop = {
    "model.encoder.name": "vit_tiny_patch16_224",
    "model.decoder.embed_dim": 128,
    "model.decoder.depth": 2,
    "model.decoder.num_heads": 4,
    "data.img_size": 96,
    "global_batch_size": 32,
    "optimizer.base_lr": 8e-3,
    "schedule.epochs": 4,
    "schedule.warmup_epochs": 0.4,
    "clip_grad": 1.0,
}
