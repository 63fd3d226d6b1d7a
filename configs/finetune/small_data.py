"""End to end on some hundred labels: mild crops, nothing mixed or erased, at least 300 steps of 32 images.

python tools/finetune.py configs/finetune/small_data.py SOURCE --data TRAIN --test-data TEST --label-fraction 0.1

The constants are the protocol's (a2mim/protocols); whatever is set beside them stands in the result.
"""

protocol = "small-data"
laptop = {
    "data.img_size": None,  # the encoder's own
    "data.test_size": None,
    "schedule.epochs": 6,
    "schedule.warmup_epochs": 1,
}
