"""MAE at low resolution, ViT-S/16, ImageNet-1k, 800 epochs at 128 px; judged and exported at 224 px.

python tools/pretrain.py configs/mae_vit_small_128.py --data 'imagenet-train-{000000..001023}.tar'
Laptop scale: about 2 minutes.

`mae_vit_small` with a third of the pixels: 64 patches in place of 196, of which 16 are computed. The position embedding
is resampled to 224 px. Low resolution is FastMIM's finding (https://arxiv.org/abs/2212.06593, for ViT-B and Swin-B);
for this row nothing is published. docs/performance.md has how much faster it is.
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
judge = dict(img_size=224)
data = dict(img_size=128, scale=(0.2, 1.0), interpolation="bicubic")
optimizer = dict(base_lr=1.5e-4)
schedule = dict(epochs=800)
laptop = {
    "model.encoder.name": "vit_tiny_patch16_224",
    "model.decoder.embed_dim": 128,
    "model.decoder.depth": 2,
    "model.decoder.num_heads": 4,
    "data.img_size": 64,
    "judge.img_size": 96,
    "global_batch_size": 32,
    "optimizer.base_lr": 8e-3,
    "schedule.epochs": 4,
    "schedule.warmup_epochs": 0.4,
    "clip_grad": 1.0,
}
