"""Multi-level feature fusion on MAE, ViT-S/16, ImageNet-1k, 800 epochs at 224 px.

python tools/pretrain.py configs/mff_vit_small.py --data 'imagenet-train-{000000..001023}.tar'
Laptop scale: about 2 minutes.

The decoder reads a weighted sum of six blocks, so that the last ones need not keep the pixels. Published
(https://arxiv.org/abs/2308.00261): ViT-S +1.2 points of fine-tuning and +2.8 of linear probe over MAE; ViT-B linear
68.3 (MAE 65.1). Differs: crops are MAE's, not resize and pad; the decoder is that of mae_vit_small.
"""

_base_ = "_base_/method.py"

model = dict(
    encoder=dict(name="vit_small_patch16_224", hide="drop", maps=[f"blocks.{i}" for i in (0, 2, 4, 6, 8, 11)]),
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
