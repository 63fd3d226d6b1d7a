"""What every A²MIM recipe shares: blocks of 32 px, 60 % hidden, filled with the mean colour; 2,048 images a step."""

model = dict(
    masking=dict(type="BlockMask", mask_patch_size=32, mask_ratio=0.6),
    fill="mean",
    decoder="linear",
    target="pixels",
)
global_batch_size = 2048
optimizer = dict(type="adamw", betas=(0.9, 0.999), weight_decay=0.05)
schedule = dict(type="cosine", warmup_epochs=10, min_lr=1e-5)
