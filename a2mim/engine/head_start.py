"""The classifier's first weights from frozen features: "head first, then all", without a training of its own.

A random classifier sends random gradients through a pre-trained encoder and distorts its features before it is any
good itself. Invariant: the images, the view and the solver are fixed, so every process finds the same weights.

Source: linear probing, then fine-tuning, https://arxiv.org/abs/2202.10054.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from a2mim.batchnorm import calibrate_batchnorm, has_batchnorm
from a2mim.data import EvalLoader, ImageDataset
from a2mim.engine.classifier import Classifier
from a2mim.evaluation.calibration import calibration_batches, calibration_loader, calibration_rows
from a2mim.evaluation.features import extract_features
from a2mim.evaluation.logreg import fit_logreg
from a2mim.wiring.model_type import TimmModel

MOST_IMAGES = 4096  # that the probe is fitted on, the same number of each class
C_POWERS, C_VALUES = (-5.0, 2.0), 15  # grid of the penalty; held-out images choose
HELD_OUT = 0.2  # of each class


def start_at_probe(model: Classifier, train_set: ImageDataset, view: dict, device: torch.device) -> dict:
    """Sets the classifier to the logistic regression on the frozen features of the training images.

    BatchNorm's statistics are taken anew from these images first: those of masked images do not fit.

    Args:
        model: changed in place; it stays where it was.
        train_set: the labelled images that are trained on.
        view: img_size, resize and interpolation of the central crops.
        device: where features are computed.

    Returns:
        "images", "c" and "held_out_top1" of the probe.

    Raises:
        ValueError: the network has no single linear classifier.
    """
    network: TimmModel = model.model
    home = next(model.parameters()).device
    head = network.get_classifier()
    if not isinstance(head, nn.Linear):
        raise ValueError(
            f"{type(network).__name__} has no single linear classifier that a probe could start: set"
            " classifier.start='random'"
        )
    model.to(device)
    if has_batchnorm(network):
        loader = calibration_loader(train_set, **view)
        calibrate_batchnorm(network, calibration_batches(loader, lambda images: model.normalize(images.to(device))))
    rows = calibration_rows(train_set, MOST_IMAGES, among=np.flatnonzero(train_set.labels >= 0))
    loader = EvalLoader(train_set, batch_size=64, indices=rows, **view)
    features, labels = extract_features(
        network, ({**b, "images": model.normalize(b["images"].to(device))} for b in loader)
    )
    found = fit_logreg(features, labels, C_POWERS, C_VALUES, held_out=HELD_OUT, tolerance=1e-9)
    model.to(home)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.fill_(float(found.weights[:, -1].min()) - 1)  # classes without a training image
        head.weight[found.classes] = found.weights[:, :-1].to(head.weight)
        head.bias[found.classes] = found.weights[:, -1].to(head.bias)
    return {"images": len(labels), "c": found.c, "held_out_top1": found.held_out_top1}
