"""One encoder, one labelled pair of sets: k-NN and linear probe from the same features, each with its interval."""

from collections.abc import Iterable

from torch import nn

from a2mim.evaluation.features import extract_features, pooling_name, refuse_below_one, unreadable_of
from a2mim.evaluation.intervals import wilson_interval
from a2mim.evaluation.knn import check_constants, knn
from a2mim.evaluation.linear import linear_probe
from a2mim.pixels import IMAGENET_MEAN, IMAGENET_STD


def judge(
    model: nn.Module,
    train_loader: Iterable,
    test_loader: Iterable,
    k: int = 20,
    temperature: float = 0.07,
    epochs: int = 100,
    pooling: str = "default",
    seed: int = 0,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
) -> dict:
    """{"pooling": …, "unreadable": {reason: count}, "knn": {…}, "linear": {…}}: the protocols' results, with
    "interval" (95 %, percent) of top-1. Images that cannot be read are left out of both sets by their loaders.

    A random network with BatchNorm must be calibrated on the same images before it is judged: the running statistics
    alone are worth points. The caller does that; nothing here touches the model.
    """
    check_constants(k, temperature)
    refuse_below_one(epochs=epochs)
    sets = (
        *extract_features(model, train_loader, pooling, mean, std),
        *extract_features(model, test_loader, pooling, mean, std),
    )
    results = {
        "knn": knn(*sets, k=k, temperature=temperature),
        "linear": linear_probe(*sets, epochs=epochs, seed=seed),
    }
    for result in results.values():
        result["interval"] = wilson_interval(int(result["correct"].sum()), result["n_test"])
    unreadable = unreadable_of(train_loader, test_loader)
    return {"pooling": pooling_name(model, pooling), "unreadable": unreadable} | results
