"""End to end on few labels: SGD with Nesterov momentum, 70 epochs, by default on 1 % of each class.

python tools/finetune.py configs/finetune/low_shot_finetune.py SOURCE --data TRAIN --test-data TEST --label-fraction 0.1

The constants are the protocol's (a2mim/protocols); whatever is set beside them stands in the result.
"""

protocol = "low-shot-finetune"
laptop = {
    "data.img_size": None,  # the encoder's own
    "data.test_size": None,
    "global_batch_size": 32,
    "optimizer.base_lr": 0.2,
    "schedule.epochs": 12,
    "labels.subset": "10%",
    "schedule.warmup_epochs": 1,
}
