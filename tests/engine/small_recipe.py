"""The tiny recipe of the engine's tests: a step takes milliseconds, a checkpoint 3 MB."""

SMALL = {"depth": 4, "embed_dim": 64, "num_heads": 2}
ENCODER = f'name="xcit_nano_12_p16_224", drop_path_rate=0.3, model_args={SMALL}'
RECIPE = """
model = dict(
    encoder=dict(ENCODER),
    masking=dict(type="BlockMask", mask_patch_size=16, mask_ratio=0.5),
    losses=[dict(type="MaskedL1"), dict(type="FourierLoss", weight=0.1)],
)
data = dict(img_size=32)
global_batch_size = 8
optimizer = dict(base_lr=0.05)
schedule = dict(epochs=3, warmup_epochs=1)
clip_grad = 5.0
checkpoint = dict(every_steps=1, keep=100)
log = dict(every_steps=1, rows=2, pictures=2)
export = []
laptop = {"schedule.epochs": 1, "schedule.warmup_epochs": 0}
""".replace("ENCODER", ENCODER)
