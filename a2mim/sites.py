"""Which module's output takes the mask token, and what pre-training reaches: traced on a throw-away copy of the model.

Invariant: what is studied here is a copy; the model itself, its BatchNorm statistics and torch's random state stay as
they are. On the meta device nothing is measured: layouts follow from shapes, and only gradients that are None are dead.
"""

import copy
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from a2mim.layout import Layout, Place, cell_stride, guess_all, leaves, read_intermediates, verify_outputs

DEPTHS = (0.25, 0.97)  # share of the network that has run at a site
MAX_LEAK = 0.1  # share of what feeds a site that may also reach the output around it; branches measure 0.88 to 1


@dataclass
class Call:
    """One run of one module: `depth` is the share of parametric leaf modules that had run when it ended."""

    name: str
    depth: float
    guesses: dict[tuple, list[Layout]]  # path in its output -> layouts that the shape allows
    widths: dict[tuple, int]  # path in its output -> channels, for the likeliest layout
    nodes: list  # the autograd nodes that made its outputs


@dataclass
class Study:
    """What `study` finds out about a model.

    `site_module` carries the hook for the site; `final_module` is "" where `forward_features` returns the final maps.
    """

    site: str
    site_module: str
    site_layouts: dict[tuple, Layout]
    site_widths: list[int]
    final_module: str
    final_layouts: dict[tuple, Layout]
    channels: list[int]
    frozen: list[str]
    pool: str | None  # "avg" where the model's pooling reads frozen parameters and averaging does not


def study(model: nn.Module, images: Tensor, site: str, max_stride: float) -> Study:
    """Traces and measures `model` on two images (2, C, H, W); `site` is a module's name or "auto".

    Costs, as a rule, a forward and a backward and two forwards more, each of one image.
    """
    trial = trial_copy(model)
    both = images
    try:
        images = both[:1].clone().requires_grad_()
        calls, output, tensors = trace(trial, images)
    except ValueError:  # BatchNorm cannot normalise a single value per channel; another cause raises again
        images = both.clone().requires_grad_()
        calls, output, tensors = trace(trial, images)
    trial.eval()
    declared = [call for name, _ in feature_modules(model) for call in calls if call.name == name]
    last = max(declared or calls, key=lambda call: call.depth, default=None)
    if last is None:
        raise ValueError("no module of the model has a feature map of the image, so the mask token has no place.")
    final_guesses = guess_all(output, images, model)
    finals = {path: t for path, t in leaves(output) if path in final_guesses}
    widest = final_guesses or last.guesses
    final_stride = max(_stride(model, guesses[0], images) for guesses in widest.values())
    roots = [t.grad_fn for t in (finals or tensors[last.name]).values()]
    if site == "auto":
        call = choose_site(model, calls, final_stride, max_stride, images, roots)
    else:
        call = find_site(trial, calls, site)

    places = [Place(hook_target(trial, c.name), c.guesses) for c in (call, last)]
    at_site, at_last = read_intermediates(trial, both[:1], places)
    final_module, final_layouts = "", verify_outputs(trial, both, places[1].module, at_last, final_guesses)
    if not final_layouts:
        final_module, final_layouts, finals = places[1].module, at_last, tensors[last.name]
    maps = [layout.to_map(finals[path]) for path, layout in final_layouts.items()]
    frozen = unreached(trial, maps)
    return Study(
        site=call.name,
        site_module=places[0].module,
        site_layouts=at_site,
        site_widths=[call.widths[path] for path in at_site],
        final_module=final_module,
        final_layouts=final_layouts,
        channels=[m.shape[1] for m in maps],
        frozen=frozen,
        pool=better_pool(trial, output, frozen),
    )


def trial_copy(model: nn.Module) -> nn.Module:
    """A copy in which no gradient is zero by initialisation alone: constant parameters (LayerScale, gammas) get noise.

    Dropout and drop path are off; BatchNorm normalises by, and keeps, the statistics of the batch it sees.
    """
    trial = copy.deepcopy(model).eval().requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    for parameter in trial.parameters():
        if not parameter.is_meta and (parameter == parameter.flatten()[0]).all():
            noise = torch.randn(parameter.shape, generator=generator, device="cpu")
            parameter.data.add_(noise.to(parameter), alpha=0.1)
    for module in trial.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
            module.momentum = 1.0
    return trial


def trace(model: nn.Module, images: Tensor) -> tuple[list[Call], Any, dict[str, dict[tuple, Tensor]]]:
    """Runs `forward_features` once under hooks.

    Returns:
        the calls, in order, of all modules that have parameters or are declared by timm, run exactly once and return a
        map of the image; the output; and the output tensors of each module.
    """
    finished, counts, tensors, handles = [], {}, {}, []
    leaf_calls = 0

    def watch(name: str, is_leaf: bool):
        def hook(module, inputs, output):
            nonlocal leaf_calls
            leaf_calls += is_leaf
            counts[name] = counts.get(name, 0) + 1
            tensors[name] = dict(leaves(output))
            # Read at once: an in-place operation that follows gives the tensor another node.
            nodes = [t.grad_fn for t in tensors[name].values() if t.grad_fn is not None]
            finished.append((name, leaf_calls, guess_all(output, images, model), nodes))

        return hook

    declared = {name for name, _ in feature_modules(model)}
    for name, module in model.named_modules():
        if name in declared or (name and any(True for _ in module.parameters())):
            is_leaf = not any(True for _ in module.children()) and any(True for _ in module.parameters())
            handles.append(module.register_forward_hook(watch(name, is_leaf)))
    try:
        output = model.forward_features(images)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(refusal(images.shape[2:], error)) from error
    finally:
        for handle in handles:
            handle.remove()
    calls = []
    for name, done, guesses, nodes in finished:
        if guesses and counts[name] == 1:
            widths = {path: tensors[name][path].shape[found[0].channel] for path, found in guesses.items()}
            calls.append(Call(name, done / max(1, leaf_calls), guesses, widths, nodes))
    return calls, output, tensors


def refusal(img_size: Sequence[int], error: Exception) -> str:
    """The sentence for an image size that a model does not take."""
    height, width = img_size
    reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
    return (
        f"the model takes no images of {height} x {width} px ({reason}); leave img_size out for the model's own size."
    )


def feature_modules(model: nn.Module) -> list[tuple[str, int]]:
    """(module name, stride in pixels) of the maps that timm declares; empty where it declares none."""
    info = getattr(model, "feature_info", None) or []
    return [(entry["module"], entry["reduction"]) for entry in getattr(info, "info", info) if entry.get("module")]


def _stride(model: nn.Module, layout: Layout, images: Tensor) -> float:
    return cell_stride(images.shape[2], layout.grid[0], [stride for _, stride in feature_modules(model)])


def choose_site(
    model: nn.Module, calls: list[Call], final_stride: float, max_stride: float, images: Tensor, roots: list
) -> Call:
    """The call whose output takes the token, by rule.

    A hierarchical network gets it on the last map of half the final stride (the input of the last stage, as A²MIM's
    ResNet), an isotropic one nearest to half its depth; maps coarser than the mask cell (`max_stride` pixels) only
    where there is no other. timm's declared maps come before those found by the trace; a map that sits in a branch,
    which the image also passes by (NASNet, Xception), is taken only where no other is left.
    """
    strides = {id(c): max(_stride(model, found[0], images) for found in c.guesses.values()) for c in calls}
    inside = [c for c in calls if DEPTHS[0] <= c.depth <= DEPTHS[1]] or calls
    fine = [c for c in inside if strides[id(c)] <= max_stride] or inside
    names = {name for name, _ in feature_modules(model)}
    deepest_first = fine[::-1]
    outer_first = sorted(deepest_first, key=lambda c: c.name.count("."))  # a stage before the layers of its last block
    declared = [c for c in deepest_first if c.name in names]

    def halves(candidates: list[Call]) -> list[Call]:
        return [c for c in candidates if abs(2 * strides[id(c)] / final_stride - 1) < 0.15]

    def middle(candidates: list[Call]) -> list[Call]:
        return sorted(candidates, key=lambda c: (abs(c.depth - 0.5), -c.depth))

    tried = []
    for candidates in (halves(declared), halves(outer_first), middle(declared), middle(outer_first)):
        for call in candidates[:16]:
            tried.append((leak(call, roots, images), call))
            if tried[-1][0] <= MAX_LEAK:
                return call
    return min(tried, key=lambda pair: pair[0])[1]


def leak(call: Call, roots: list, images: Tensor) -> float:
    """The share of what feeds a module's output (parameters, image) that also reaches the roots around it.

    Args:
        roots: autograd nodes of the final maps.
        images: what the model was traced on; 1 is returned for an output that does not depend on them (positions).
    """
    through, around = _sources(call.nodes, set()), _sources(roots, set(call.nodes))
    if not any(node.variable is images for node in through):
        return 1.0
    return sum(number for node, number in through.items() if node in around) / sum(through.values())


def _sources(starts: list, walls: set) -> dict[Any, int]:
    """Autograd leaves reachable from `starts` without passing `walls`, with their numbers of elements."""
    found, seen, todo = {}, set(walls), [node for node in starts if node not in walls]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found[node] = node.variable.numel()
        todo.extend(following for following, _ in node.next_functions)
    return found


def find_site(model: nn.Module, calls: list[Call], name: str) -> Call:
    """The call of the module of that name, or ValueError with the nearest names."""
    by_name = {call.name: call for call in calls}
    if name in by_name:
        return by_name[name]
    near = difflib.get_close_matches(name, by_name, n=4, cutoff=0.3) or [n for n in by_name if "." not in n]
    known = name in dict(model.named_modules())
    why = "has no feature map that is computed once" if known else "is no module of this model"
    raise ValueError(f"site {name!r} {why}; names nearest to it that can take the mask token: {', '.join(near[:8])}.")


def hook_target(model: nn.Module, name: str) -> str:
    """The last child of a plain nn.Sequential, which has the same output.

    timm's gradient checkpointing calls the children of such a stage and never the stage: a hook on it would not run.
    """
    module = model.get_submodule(name)
    while type(module) is nn.Sequential and len(module):
        child = next(reversed(module._modules))
        name, module = f"{name}.{child}", module._modules[child]
    return name


def unreached(model: nn.Module, tensors: list[Tensor], among: list[str] | None = None) -> list[str]:
    """Names of the parameters whose gradient from a random functional of the tensors is None or exactly zero."""
    generator = torch.Generator().manual_seed(1)
    loss = sum((t * torch.randn(t.shape, generator=generator, device="cpu").to(t)).sum() for t in tensors)
    named = [(name, p) for name, p in model.named_parameters() if among is None or name in among]
    gradients = torch.autograd.grad(loss, [p for _, p in named], retain_graph=True, allow_unused=True)
    dead = [g is None or (not g.is_meta and not g.any()) for g in gradients]
    return [name for (name, _), is_dead in zip(named, dead, strict=True) if is_dead]


def better_pool(model: nn.Module, output: Any, frozen: list[str]) -> str | None:
    """ "avg" where the model's own pooling reads parameters that pre-training never reaches and averaging does not.

    XCiT's class token passes through class attention that stays random; the mean of its patch tokens does not. Models
    whose keys change with the pooling keep theirs.
    """
    if not frozen or getattr(model, "global_pool", "avg") in ("avg", "", None):
        return None

    def reads_frozen() -> bool:
        return len(unreached(model, [model.forward_head(output, pre_logits=True)], frozen)) < len(frozen)

    keys = list(model.state_dict())
    if not reads_frozen():
        return None
    try:
        model.reset_classifier(0, "avg")
    except (TypeError, ValueError, AssertionError):  # this model knows no other pooling
        return None
    return "avg" if list(model.state_dict()) == keys and not reads_frozen() else None
