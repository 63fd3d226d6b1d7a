"""SimMIM's fine-tuning of ViT and Swin: 100 epochs at 224 px, AdamW, 20 of them warm-up.

python tools/finetune.py configs/finetune/simmim_finetune.py SOURCE --data TRAIN --test-data TEST

A Swin: --cfg-options variant=swin.
The constants are the protocol's (a2mim/protocols); whatever is set beside them stands in the result.
"""

protocol = "simmim-finetune"
laptop = {
    "data.img_size": None,  # the encoder's own
    "data.test_size": None,
    "global_batch_size": 64,
    "optimizer.base_lr": 2e-3,
    "optimizer.base_batch": 256,
    "schedule.epochs": 6,
    "schedule.warmup_epochs": 1,
    "augment.auto_augment": "",
    "mix.mixup": 0.0,
    "mix.cutmix": 0.0,
}
