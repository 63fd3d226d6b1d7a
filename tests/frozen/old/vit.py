"""A ViT of 8 channels, with averaged weights: its checkpoint is a few kilobytes."""

model = dict(
    encoder=dict(
        name="vit_tiny_patch16_224",
        token="add",
        drop_path_rate=0.1,
        model_args=dict(patch_size=8, embed_dim=8, depth=2, num_heads=2),
    ),
    masking=dict(type="BlockMask", mask_patch_size=8, mask_ratio=0.5),
    losses=[dict(type="MaskedL1"), dict(type="FourierLoss", weight=0.1)],
)
data = dict(img_size=32)
global_batch_size = 16
ema = 0.1
optimizer = dict(base_lr=0.05)
schedule = dict(epochs=1, warmup_epochs=0.02)
clip_grad = 5.0
