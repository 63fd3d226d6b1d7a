"""A frozen teacher's features, ResNet-50, ImageNet-1k, 300 epochs at 224 px.

python tools/pretrain.py configs/distill_resnet50.py --data 'imagenet-train-{000000..001023}.tar'
Laptop scale: about 4 minutes.

As distill_xcit_small, with A²MIM's masks. The teacher sees the image at 196 px: 14x14 cells, four for each cell of the
student. Any source works: --cfg-options model.target.source=RUN. Without --data nothing is downloaded: the teacher is a
random CNN.
"""

_base_ = "_base_/method.py"

model = dict(
    encoder=dict(name="resnet50", site="layer3", token="scaled"),
    masking=dict(type="BlockMask", mask_patch_size=32, mask_ratio=0.6),
    fill="mean",
    decoder="linear",
    target=dict(type="FrozenFeatures", source="vit_base_patch14_dinov2.lvd142m:pretrained", img_size=196),
    losses=[dict(type="MaskedSmoothL1")],
)
data = dict(img_size=224, scale=(0.67, 1.0), interpolation="bicubic")
global_batch_size = 2048
optimizer = dict(base_lr=1.5e-4, betas=(0.9, 0.999), token_lr_scale=0.1)
schedule = dict(epochs=300, warmup_epochs=10)
clip_grad = 3.0
sync_batchnorm = True
laptop = {
    "model.encoder.name": "resnet18",
    "model.masking.mask_patch_size": 16,
    "model.masking.mask_ratio": 0.5,
    "model.target": dict(type="RandomFeatures", stride=16),
    "data.img_size": 64,
    "global_batch_size": 32,
    "optimizer.base_lr": 8e-3,
    "schedule.epochs": 4,
    "schedule.warmup_epochs": 0.4,
    "clip_grad": 1.0,
}
