"""MAE-CT's refinement: one head on the final map, https://arxiv.org/abs/2304.10520.

python tools/refine.py SOURCE --data TRAIN --recipe configs/refine/mae_ct.py

As last_third, with its published constants. Differs: one run with one schedule in place of two.
"""

heads = dict(maps="last")
global_batch_size = 1024
laptop = {
    "heads.hidden": 512,
    "heads.predicted": 512,
    "heads.width": 128,
    "heads.alone_epochs": 2,
    "data.scale": (0.25, 1.0),
    "global_batch_size": 64,
    "optimizer.base_lr": 1e-3,
    "schedule.epochs": 6,
    "schedule.warmup_epochs": 1,
    "clip_grad": 1.0,
}
