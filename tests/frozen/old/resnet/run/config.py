model = {
    "encoder": {
        "name": "test_resnet",
        "site": "layer1",
        "token": "scaled",
        "maps": ["layer2"],
        "model_args": {"channels": (4, 8, 4, 4), "stem_width": 4},
    },
    "masking": {"type": "BlockMask", "mask_patch_size": 8, "mask_ratio": 0.5},
    "losses": [{"type": "MaskedL1"}, {"type": "FourierLoss", "weight": 0.5}],
}
init_from = None
allow_partial = False
data = {
    "img_size": 32,
    "in_chans": 3,
    "bits": None,
    "exif": False,
    "value_range": None,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "scale": (0.67, 1.0),
    "ratio": (0.75, 1.3333333333333333),
    "hflip": 0.5,
    "interpolation": "bilinear",
    "transforms": [],
}
global_batch_size = 16
accumulate = 1
optimizer = {"type": "adamw", "base_lr": 0.05, "betas": (0.9, 0.999), "weight_decay": 0.05, "token_lr_scale": 1.0}
schedule = {
    "type": "cosine",
    "epochs": 1,
    "warmup_epochs": 0.02,
    "min_lr": 1e-05,
    "decay_epochs": [],
    "decay_rate": 0.1,
}
clip_grad = None
amp = "auto"
ema = None
compile = False
channels_last = False
sync_batchnorm = False
checkpoint = {"every_steps": None, "every_epochs": 1, "keep": 3}
log = {"every_steps": 5, "pictures": 2, "rows": 1, "tensorboard": False}
judge = {"train_images": 5000, "test_images": 2000, "k": 20, "every_epochs": None, "images": None}
export = ["timm"]
seed = 0
laptop = {}
custom_imports = None
