"""MAE's fine-tuning of a ViT: 100 epochs at 224 px, AdamW, layer decay 0.65, mixup and cutmix.

python tools/finetune.py configs/finetune/mae_finetune.py SOURCE --data TRAIN --test-data TEST

A ViT-L: --cfg-options variant=large.
The constants are the protocol's (a2mim/protocols); whatever is set beside them stands in the result.
"""

protocol = "mae-finetune"
laptop = {
    "data.img_size": None,  # the encoder's own
    "data.test_size": None,
    "global_batch_size": 64,
    "optimizer.base_lr": 2e-3,
    "schedule.epochs": 6,
    "schedule.warmup_epochs": 1,
    "augment.auto_augment": "",
    "mix.mixup": 0.0,
    "mix.cutmix": 0.0,
}
