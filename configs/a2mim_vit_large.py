"""A²MIM, ViT-L/16, ImageNet-1k, 800 epochs at 192 px: the reference's recipe.

python tools/pretrain.py configs/a2mim_vit_large.py --data 'imagenet-train-{000000..001023}.tar'
Laptop scale: about 2 minutes.

As a2mim_vit_small, with 24 blocks of width 1,024 and 16 heads. Published: 86.1 % top-1 after fine-tuning (SimMIM 85.6).
"""

_base_ = "_base_/a2mim.py"

model = dict(
    encoder=dict(
        name="beit_base_patch16_224",
        model_args=dict(
            embed_dim=1024,
            depth=24,
            num_heads=16,
            mlp_ratio=4,
            use_abs_pos_emb=True,
            init_values=0.1,
            global_pool="token",
        ),
        drop_path_rate=0.1,
        site="patch_embed",
        token="add",
    ),
    losses=[dict(type="MaskedL1"), dict(type="FourierLoss", weight=0.1)],
)
data = dict(img_size=192, scale=(0.67, 1.0))
optimizer = dict(base_lr=5e-5)
schedule = dict(type="step", epochs=800, decay_epochs=[700])
clip_grad = 5.0
laptop = {
    "model.encoder.name": "deit_tiny_patch16_224",
    "model.encoder.model_args": {},
    "model.encoder.drop_path_rate": 0.0,
    "model.encoder.site": "blocks.6",
    "model.masking.mask_patch_size": 16,
    "model.masking.mask_ratio": 0.5,
    "data.img_size": 64,
    "global_batch_size": 32,
    "optimizer.base_lr": 8e-3,
    "schedule.type": "cosine",
    "schedule.epochs": 4,
    "schedule.warmup_epochs": 0.4,
    "clip_grad": 1.0,
}
