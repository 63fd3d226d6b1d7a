"""FastMIM, ResNet-50, ImageNet-1k, 400 epochs at 128 px: gradients of small images, then fine-tuning at 224 px.

python tools/pretrain.py configs/fastmim_resnet50.py --data 'imagenet-train-{000000..001023}.tar'
Laptop scale: about 6 minutes.

Cells of 32 px as in the paper's hierarchical networks, and four blocks in the decoder. Source:
https://arxiv.org/abs/2212.06593, which has no ResNet (published: Swin-B 84.1 %); the learning rate is MAE's.
"""

_base_ = "_base_/method.py"

model = dict(
    encoder=dict(name="resnet50", token="none"),
    masking=dict(type="BlockMask", mask_patch_size=32, mask_ratio=0.75),
    fill=dict(type="LearnedFill"),
    decoder=dict(type="TransformerDecoder", embed_dim=256, depth=4, num_heads=8),
    target="hog",
    losses=[dict(type="MaskedL2")],
)
data = dict(img_size=128, scale=(0.2, 1.0), interpolation="bicubic")
optimizer = dict(base_lr=1.5e-4)
schedule = dict(epochs=400)
sync_batchnorm = True
laptop = {
    "model.encoder.name": "resnet18",
    "model.masking.mask_patch_size": 32,
    "model.decoder.embed_dim": 128,
    "model.decoder.depth": 1,
    "data.img_size": 96,
    "global_batch_size": 32,
    "optimizer.base_lr": 8e-3,
    "schedule.epochs": 4,
    "schedule.warmup_epochs": 0.4,
    "clip_grad": 1.0,
}
