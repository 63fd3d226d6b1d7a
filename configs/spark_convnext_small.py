"""SparK, ConvNeXt-S, ImageNet-1k, 1,600 epochs at 224 px: a CNN that sees visible cells alone.

python tools/pretrain.py configs/spark_convnext_small.py --data 'imagenet-train-{000000..001023}.tar'
Laptop scale: about 5 minutes.

Published (https://arxiv.org/abs/2301.03580): 84.1 % top-1 after fine-tuning. Differs: weight decay stays at 0.04, where
SparK's rises to 0.2; the decoder starts 384 wide, as SparK's 768 would cost more than the encoder
(--cfg-options model.decoder.width=768).
"""

_base_ = "_base_/method.py"

model = dict(
    encoder=dict(name="convnext_small", hide="sparse", maps=["stages.0", "stages.1", "stages.2", "stages.3"]),
    masking=dict(type="BlockMask", mask_patch_size=32, mask_ratio=0.59),  # 29 of 49 cells: 20 stay visible
    fill="none",
    decoder=dict(type="LightDecoder", width=384, norm="layer"),
    target=dict(type="NormalizedPatches", patch_size=32, channels="together"),
    losses=[dict(type="MaskedL2")],
)
data = dict(img_size=224, scale=(0.67, 1.0), interpolation="bicubic")
optimizer = dict(type="lamb", base_lr=2e-4, betas=(0.9, 0.999), weight_decay=0.04)
schedule = dict(epochs=1600)
clip_grad = 5.0
sync_batchnorm = True  # of the decoder: the network has no BatchNorm
laptop = {
    "model.encoder.name": "convnext_atto",
    "model.decoder.width": 128,
    "data.img_size": 96,
    "optimizer.type": "adamw",
    "global_batch_size": 32,
    "optimizer.base_lr": 8e-3,
    "schedule.epochs": 4,
    "schedule.warmup_epochs": 0.4,
    "clip_grad": 1.0,
}
