"""SparK's fine-tuning of CNNs: 300 epochs at 224 px, LAMB, layer decay 0.7, averaged weights.

python tools/finetune.py configs/finetune/spark_finetune.py SOURCE --data TRAIN --test-data TEST

A ResNet-101 or larger: --cfg-options variant=large.
The constants are the protocol's (a2mim/protocols); whatever is set beside them stands in the result.
"""

protocol = "spark-finetune"
laptop = {
    "data.img_size": None,  # the encoder's own
    "data.test_size": None,
    "global_batch_size": 64,
    "optimizer.base_lr": 8e-3,
    "schedule.epochs": 6,
    "schedule.warmup_epochs": 1,
    "ema": 0.01,
    "augment.erasing": 0.0,
    "augment.auto_augment": "",
    "mix.mixup": 0.0,
    "mix.cutmix": 0.0,
}
