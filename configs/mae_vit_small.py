"""MAE, ViT-S/16, ImageNet-1k, 800 epochs at 224 px: the row of ViT-B with a smaller encoder.

python tools/pretrain.py configs/mae_vit_small.py --data 'imagenet-train-{000000..001023}.tar'
Laptop scale: about 2 minutes.

Source: https://arxiv.org/abs/2111.06377, which has no ViT-S. MAE's decoder of 8 blocks x 512 would cost more than this
encoder; 2 blocks x 256 keep a step below half of the whole network's.
"""

_base_ = "_base_/method.py"

model = dict(
    encoder=dict(name="vit_small_patch16_224", hide="drop"),
    masking=dict(type="BlockMask", mask_patch_size=16, mask_ratio=0.75),
    fill="none",
    decoder=dict(type="TransformerDecoder", embed_dim=256, depth=2, num_heads=8),
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
