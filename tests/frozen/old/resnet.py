"""A ResNet of 4 to 8 channels, with BatchNorm: its checkpoint is a few kilobytes."""

model = dict(
    encoder=dict(
        name="test_resnet",
        site="layer1",
        token="scaled",
        maps=["layer2"],
        model_args=dict(channels=(4, 8, 4, 4), stem_width=4),
    ),
    masking=dict(type="BlockMask", mask_patch_size=8, mask_ratio=0.5),
    losses=[dict(type="MaskedL1"), dict(type="FourierLoss", weight=0.5)],
)
data = dict(img_size=32)
global_batch_size = 16
optimizer = dict(base_lr=0.05)
schedule = dict(epochs=1, warmup_epochs=0.02)
