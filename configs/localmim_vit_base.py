"""LocalMIM, ViT-B/16, ImageNet-1k, 1,600 epochs at 224 px: four blocks predict gradients of four scales.

python tools/pretrain.py configs/localmim_vit_base.py --data 'imagenet-train-{000000..001023}.tar'
Laptop scale: about 3 minutes.

Blocks 1, 3, 9 and 11 predict histograms of gradients of 4, 8, 16 and 32 px, each through a norm and a decoder of its
own. Published (https://arxiv.org/abs/2303.05251): 84.0 % top-1 after fine-tuning. Differs: a decoder ends in a linear
map where the paper has two transposed convolutions for 4 px.
"""

_base_ = "_base_/method.py"

model = dict(
    encoder=dict(name="vit_base_patch16_224", hide="drop", maps=[f"blocks.{i}" for i in (1, 3, 9, 11)]),
    masking=dict(type="BlockMask", mask_patch_size=16, mask_ratio=0.75),
    fill="none",
    decoder=dict(type="EachScale", decoder=dict(type="TransformerDecoder", embed_dim=256, depth=1, num_heads=8)),
    target=dict(type="HOG", cells=[4, 8, 16, 32]),
    losses=[dict(type="MaskedL2", weight=4.0)],  # the sum of four scales; the loss is their mean
)
data = dict(img_size=224, scale=(0.2, 1.0), interpolation="bicubic")
global_batch_size = 2048
optimizer = dict(base_lr=2e-4)
schedule = dict(epochs=1600)
laptop = {
    "model.encoder.name": "vit_tiny_patch16_224",
    "model.decoder.decoder.embed_dim": 128,
    "model.decoder.decoder.num_heads": 4,
    "data.img_size": 96,
    "global_batch_size": 32,
    "optimizer.base_lr": 8e-3,
    "schedule.epochs": 4,
    "schedule.warmup_epochs": 0.4,
    "clip_grad": 1.0,
}
