"""Refinement of a pre-trained encoder: nearest-neighbour contrast on the maps of the last third of its layers.

python tools/refine.py SOURCE --data TRAIN

Two crops of an image and a flip; the first half of the layers stays as it is. The heads train alone for 20 epochs, then
with the second half of the encoder for 20 more. MAE-CT's constants (https://arxiv.org/abs/2304.10520; published: ViT-B
linear 66.7 -> 73.5 %, k-NN 51.1 -> 64.1 %) with MIM-Refiner's heads on several layers
(https://arxiv.org/abs/2402.10093). For any encoder. The laptop scale is for a few hundred or thousand images.
"""

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
