"""ResNet strikes back, A3: 100 epochs at 160 px, LAMB, binary cross-entropy; unstable, for quick looks.

python tools/finetune.py configs/finetune/rsb_a3.py SOURCE --data TRAIN --test-data TEST

The constants are the protocol's (a2mim/protocols); whatever is set beside them stands in the result.
"""

protocol = "rsb-a3"
laptop = {
    "data.img_size": None,  # the encoder's own
    "data.test_size": None,
    "global_batch_size": 64,
    "optimizer.base_lr": 8e-3,
    "optimizer.base_batch": 256,
    "schedule.epochs": 6,
    "schedule.warmup_epochs": 1,
    "augment.auto_augment": "",
    "mix.mixup": 0.0,
    "mix.cutmix": 0.0,
}
