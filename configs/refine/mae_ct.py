"""MAE-CT's refinement: one head on the final map, https://arxiv.org/abs/2304.10520.

python tools/refine.py SOURCE --data TRAIN --recipe configs/refine/mae_ct.py

As last_third, with its published constants. Differs: one run with one schedule in place of two.
"""

_base_ = "last_third.py"
heads = dict(maps="last")
