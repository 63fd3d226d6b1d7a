"""One encoder, several protocols by name: features in one pass, results on screen and on disk."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from a2mim.data import Access
from a2mim.data.masks import looks_masked
from a2mim.data.sources import labels_of
from a2mim.evaluation import copydays, davis, label_free_run, runners, seg_augmented, seg_knn, seg_linear
from a2mim.evaluation.cache import Cache
from a2mim.evaluation.context import VIEW, EvalContext
from a2mim.evaluation.cost import ViewPass, estimate
from a2mim.evaluation.identity import hash_of
from a2mim.evaluation.results import write_result
from a2mim.evaluation.segmentation import SegmentationTask, open_task, result_of
from a2mim.evaluation.shown import Records
from a2mim.evaluation.subsets import write_list
from a2mim.files import write_text
from a2mim.processes.group import is_first, joined
from a2mim.processes.leading import lead, together
from a2mim.protocols import Protocol, read_protocol
from a2mim.text import warn_user

DENSE = ("davis", "copydays", "segmentation")  # each reads folders of its own format
UNLABELLED = ("label-free",)  # they use no labels
# run if no protocol is named
FOR_LABELS = ("dino-knn", "linear-cached", "efficient-probe")
FOR_MASKS = ("seg-knn", "seg-linear")
FOR_IMAGES = ("label-free",)
COLUMNS = ("protocol", "metric", "top1_last", "interval", "top5", "n_train", "n_test")  # what a notebook shows


def evaluate(
    source,
    protocols,
    data,
    test_data=None,
    out=None,
    overrides: dict | None = None,
    cache: Cache | None = None,
    say: Callable[[str], None] | None = None,
    **options,
) -> list[dict]:
    """Results of every protocol, in order; what `a2mim evaluate` prints. Each is written to `out` as soon as it is
    computed.

    Args:
        source: what `load_encoder` takes.
        protocols: names, or paths of TOML files; None: those that suit the data, see `sensible_protocols`.
        data, test_data: labelled sets, see `open_dataset`; a dense protocol takes its folder as `data` alone. Without
            test_data the test part of `data` is used; where it has none, a fifth of each class is split off and listed.
        out: folder of results.json and results.csv.
        overrides: constants by name, for every protocol that has them, or "protocol.name" for one; see `read_protocol`.
        cache: where features are kept; None keeps them for this call only.
        say: called with the expected cost of the evaluation, before the first image; in the first process alone.
        options: of `EvalContext`: device, img_size, batch_size, num_workers, calibrate, allow_partial, seed, access,
            reading, allow_contradictions.

    The processes of a torchrun that all call this share the passes over the images; each returns the results.

    Raises:
        ValueError: see `read_protocol`, `EvalContext` and the protocols.

    Examples:
        >>> results = a2mim.evaluate("runs/tiny", ["dino-knn"], "photographs")
        >>> results[0]["protocol"], results[0]["n_test"]
        ('dino-knn', 8)
    """
    out = None if out is None else Path(out)
    with joined(options.pop("device", None)) as device:
        options["device"] = device
        chosen = together(lambda: _checked(_named(protocols, data, options.get("access"), say), overrides or {}))
        if any(protocol.kind in DENSE for protocol in chosen):
            return Records(_dense(source, chosen, data, test_data, out, options, say or warn_user), COLUMNS)
        found = _unlabelled(source, [p for p in chosen if p.kind in UNLABELLED], data, out, options)
        labelled = [p for p in chosen if p.kind not in UNLABELLED]
        if not labelled:
            return Records(found, COLUMNS)
        context = together(lambda: EvalContext(source, data, test_data, cache=cache, **options))
        results = lead(lambda: _labelled(context, labelled, out, say), context.helpers()) + found
        return Records(results, COLUMNS)


def _named(protocols, data, access: Access | None, say: Callable[[str], None] | None):
    """The names that were given, or those of the protocols that suit the data."""
    if protocols is not None:
        return protocols
    found, why = sensible_protocols(data, access)
    if say is not None and is_first():
        say(f"protocols for what is there: {why}")
    return found


def _checked(protocols, overrides: dict) -> list[Protocol]:
    """The protocols, if all of them judge frozen encoders and their constants are in range."""
    chosen = read_protocols(protocols, overrides)
    for protocol in chosen:
        if protocol.kind == "finetune":
            raise ValueError(f"{protocol.name} trains the encoder: run a2mim finetune; evaluate judges frozen ones.")
        runners.check(protocol)
    others = [protocol.name for protocol in chosen if protocol.kind not in DENSE]
    if others and len(others) < len(chosen):
        dense = next(protocol.name for protocol in chosen if protocol.kind in DENSE)
        raise ValueError(f"{others[0]} and {dense} read different data: run them one after the other.")
    return chosen


def _unlabelled(source, chosen: list[Protocol], data, out: Path | None, options: dict) -> list[dict]:
    """Results of the protocols that use no labels."""
    found: list[dict] = []
    for protocol in chosen:
        judged = together(partial(label_free_run.LabelFree, source, protocol, data, **options))
        found += lead(partial(_written, judged.results, out), judged.helpers())
    return found


def _written(results: Callable[[], list[dict]], out: Path | None) -> list[dict]:
    found = results()
    if out is not None:
        for result in found:
            write_result(result, out)
    return found


def _labelled(
    context: EvalContext, chosen: list[Protocol], out: Path | None, say: Callable[[str], None] | None
) -> list[dict]:
    """Results of the protocols that use labels; each is written as soon as it is computed."""
    if context.split_rows is not None:
        whole = context.whole
        path = write_list(whole, context.split_rows, _split_path(out, whole.fingerprint))
        (say or warn_user)(_split_sentence(len(context.split_rows), len(whole), "a fifth of each class", path))
    passes = _passes(chosen, context)
    cost = estimate(context, chosen, passes)
    if cost.images:
        context.cache.check_room(cost.size)
    if say is not None:
        say(cost.sentence())
    for view in passes:
        for split in ("train", "test"):
            context.features(split, view.parts, view.constants)
    overlap = context.overlap(chosen[0].constants)
    results = []
    for protocol in chosen:
        for result in runners.RUNNERS[protocol.kind](context, protocol, out):
            results.append(result | {"overlap": overlap})
            if out is not None:
                write_result(results[-1], out)
    if not results:
        raise ValueError("nothing is left to judge: no subset of labels has more than one image a class.")
    return results


def sensible_protocols(data, access: Access | None = None) -> tuple[list[str], str]:
    """(protocols that suit the data, which have masks, labels or neither; a sentence that says why)."""
    if looks_masked(data):
        return list(FOR_MASKS), f"the images have masks: {', '.join(FOR_MASKS)}"
    labels = labels_of(data, access)
    if len(labels) and (labels >= 0).all():
        return list(FOR_LABELS), f"the images have labels: {', '.join(FOR_LABELS)}"
    missing = f"{int((labels < 0).sum())} of {len(labels)} images have no label"
    return list(FOR_IMAGES), f"{missing}: {', '.join(FOR_IMAGES)}, which says nothing of classes"


def _split_path(out: Path | None, fingerprint: str) -> Path:
    """Where the images that were split off to test on are listed."""
    path = (out or Path()) / f"test-split-{fingerprint}.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _split_sentence(tested: int, images: int, share: str, path: Path) -> str:
    return (
        f"no test set was given: {tested:,} of the {images:,} images, {share}, are split off to test on; they are"
        f" listed in {path}"
    )


def read_protocols(names, overrides: dict) -> list[Protocol]:
    """Protocols, each with its own overrides; an override that no protocol has is an error."""
    names, used, found = list(dict.fromkeys(names)), set(), []
    if not names:
        raise ValueError("no protocol was named: give at least one.")
    for name in names:
        known = read_protocol(name)
        keys = {*known.constants, "variant"} if "variant" in known.constants else set(known.constants)
        own = {key: value for key, value in overrides.items() if key in keys}
        own |= {k.partition(".")[2]: v for k, v in overrides.items() if k.partition(".")[0] == known.name and "." in k}
        used |= set(own) | {f"{known.name}.{key}" for key in own}
        found.append(read_protocol(name, own))
    for key in set(overrides) - used:
        owner, dot, _ = key.partition(".")
        if dot and owner not in [protocol.name for protocol in found]:
            raise ValueError(f"--set {key}: {owner} is not among the protocols that were named.")
        read_protocol(names[0], {key.rpartition(".")[2]: overrides[key]})  # raises, with the nearest names
    return found


def _passes(chosen: list[Protocol], context: EvalContext) -> list[ViewPass]:
    """One pass for each different view, with all parts needed in it."""
    wanted: dict[tuple, list[str]] = {}
    for protocol in chosen:
        view = tuple(protocol.constants[key] for key in VIEW)
        wanted.setdefault(view, []).extend(runners.parts_of(protocol, context))
    return [ViewPass(dict(zip(VIEW, view, strict=True)), tuple(dict.fromkeys(p))) for view, p in wanted.items()]


def _dense(
    source, chosen: list[Protocol], data, test_data, out: Path | None, options: dict, say: Callable
) -> list[dict]:
    runs, results = {"davis": davis.run, "copydays": copydays.run}, list[dict]()
    said = False
    for protocol in chosen:
        if protocol.kind == "segmentation":
            task = together(partial(open_task, source, protocol, data, test_data, **options))
            work = partial(_segment, task, protocol, out, None if said else say)
            results += lead(partial(_written, work, out), task.helpers())
            said = True
        else:
            work = partial(_alone, runs[protocol.kind], source, protocol, data, options)
            results += lead(partial(_written, work, out), {})
    return results


def _alone(run: Callable[..., dict], source, protocol: Protocol, data, options: dict) -> list[dict]:
    return [run(source, protocol, data, **options)]


def _segment(task: SegmentationTask, protocol: Protocol, out: Path | None, say: Callable | None) -> list[dict]:
    if task.split_rows is not None and task.whole is not None and say is not None:
        names = task.whole.names
        path = _split_path(out, hash_of(names))
        write_text(path, "".join(f"{row}\t{names[row]}\n" for row in task.split_rows))
        say(_split_sentence(len(task.split_rows), len(names), "a fifth", path))
    heads = {"linear": seg_linear.run, "knn": seg_knn.run, "augmented": seg_augmented.run}
    predictions, chosen = heads[protocol.constants["head"]](task, protocol.constants)
    return [result_of(task, protocol, predictions, chosen, out)]
