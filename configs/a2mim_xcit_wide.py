"""A²MIM, XCiT-S12/16 on wide images: 192 px high and 384 px wide, 300 epochs.

python tools/pretrain.py configs/a2mim_xcit_wide.py --data 'road-scenes-{000000..000099}.tar'
Laptop scale: about 4 minutes.

No paper has this row: it is a2mim_xcit.py at another size. A crop is twice as wide as high, up to the usual variation,
so that nothing is squeezed. Mask, maps, pictures, judgement and export are rectangles too.
"""

_base_ = "_base_/a2mim.py"

model = dict(
    encoder=dict(name="xcit_small_12_p16_224", site="auto", token="add"),
    losses=[dict(type="MaskedL1"), dict(type="FourierLoss", weight=0.1)],
)
data = dict(img_size=(192, 384), scale=(0.67, 1.0))
optimizer = dict(base_lr=1e-4)
schedule = dict(epochs=300)
clip_grad = 5.0
laptop = {
    "model.encoder.name": "xcit_nano_12_p16_224",
    "model.masking.mask_patch_size": 16,
    "model.masking.mask_ratio": 0.5,
    "data.img_size": (48, 96),
    "global_batch_size": 32,
    "optimizer.base_lr": 8e-3,
    "schedule.epochs": 6,
    "schedule.warmup_epochs": 0.6,
    "clip_grad": 1.0,
}
