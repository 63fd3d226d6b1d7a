"""Finds the modules whose outputs take the mask token, the maps that are decoded, and parameters without gradients.

Invariant: only a throw-away copy is studied, see `a2mim.wiring.tracing`. On the meta device nothing is measured:
layouts are guessed from shapes, and only gradients that are None count as dead.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from a2mim.text import close_names
from a2mim.wiring.layout import Layout, cell_stride, distinct, guess_all, leaves, replace_leaves
from a2mim.wiring.measure import HookPoint, observe, read_intermediates, read_stripes, verify_outputs
from a2mim.wiring.model_type import TimmModel
from a2mim.wiring.tracing import Call, Trace, feature_modules, trace, trial_copy

DEPTHS = (0.25, 0.97)  # allowed share of the network that has run at a site
MAX_LEAK = 0.1  # greatest `leak` of a site; modules in a branch measure 0.88 to 1


@dataclass(frozen=True)
class FeatureMaps:
    """The feature maps in the output of one module, or of `forward_features` if `module` is "".

    Attributes:
        name: of the module, as the user or the rule chose it.
        module: the module that carries the hook, see `hook_target`.
        layouts: path in the output -> layout.
        strides: of each map, pixels per cell (vertical, horizontal).
        channels: of each map.
        depth: share of the network that had run; only for sites.
        leak: see `leak`; only for sites.
    """

    name: str
    module: str
    layouts: dict[tuple, Layout]
    strides: list[tuple[float, float]]
    channels: list[int]
    depth: float = 1.0
    leak: float = 0.0


@dataclass(frozen=True)
class Study:
    """The result of `study`."""

    sites: list[FeatureMaps]
    finals: list[FeatureMaps]
    frozen: list[str]
    pool: str | None  # "avg" if the model's pooling reads frozen parameters and averaging does not
    resized: list[str]  # modules that receive the image after the model resized it


def study(
    model: nn.Module, images: Tensor, site: str | Sequence[str], max_stride: float, maps: str | Sequence[str] = "auto"
) -> Study:
    """Traces and measures `model` on two images (2, C, H, W).

    Args:
        site: names of modules, or "auto".
        max_stride: pixels; "auto" prefers a site whose cells are no larger.
        maps: names of the modules whose outputs are decoded, or "auto" for the maps of `forward_features`.

    It usually costs three forwards and one backward, each of one image.
    """
    trial, both = trial_copy(model), images
    named_sites = [] if site == "auto" else _names(site, "site")
    decoded = [] if maps == "auto" else _names(maps, "maps")
    images, seen = _trace_one(trial, both, [*named_sites, *decoded])
    if not seen.calls:
        raise ValueError("no module of the model has a feature map of the image, so the mask token has no place.")
    last = last_map(model, seen.calls)
    guesses = guess_all(seen.output, images, model)
    named = [find_map(trial, seen, name, "maps") for name in decoded]
    if named:
        roots = [t.grad_fn for call in named for t in seen.tensors[call.name].values()]
    else:
        last_tensors = {path: t for path, t in leaves(seen.output) if path in guesses}
        roots = [t.grad_fn for t in (last_tensors or seen.tensors[last.name]).values()]
    declared = [] if seen.resized else [stride for _, stride in feature_modules(model)]
    strides = _Strides((images.shape[2], images.shape[3]), declared, bool(seen.resized))
    reached = _walk(roots, set())
    before = [call for call in seen.calls if not reached.isdisjoint(call.nodes.values())]
    if named_sites:
        calls = [find_map(trial, seen, name) for name in named_sites]
        _refuse_behind(calls, before)
    else:
        final_stride = max(strides.of(guess[0])[0] for guess in (guesses or last.guesses).values())
        calls = [choose_site(model, before or seen.calls, final_stride, max_stride, images, roots, strides)]
    layouts_of, outputs = _measure(trial, both, seen, calls, named, last, {} if named else guesses)
    tensors = {"": dict(leaves(seen.output)), **seen.tensors}

    def maps_of(name: str, module: str, layouts: dict, **more) -> FeatureMaps:
        channels = [tensors[name][path].shape[layout.channel] for path, layout in layouts.items()]
        return FeatureMaps(name, module, layouts, [strides.of(x) for x in layouts.values()], channels, **more)

    ends = {"": outputs} if outputs else {call.name: layouts_of[call.name] for call in named or [last]}
    finals = [
        maps_of(name, hook_target(trial, name) if name else "", distinct(layouts, tensors[name]))
        for name, layouts in ends.items()
    ]
    sites = []
    for call in calls:
        used = used_paths(trial, call, images, list(ends), named_sites + decoded)
        layouts = {path: layouts_of[call.name][path] for path in used}
        more = {"depth": call.depth, "leak": leak(call, roots, images)}
        sites.append(maps_of(call.name, hook_target(trial, call.name), layouts, **more))
    read = [x.to_map(tensors[maps.name][path]) for maps in finals for path, x in maps.layouts.items()]
    frozen = unreached(trial, read)
    return Study(sites, finals, frozen, better_pool(trial, seen.output, frozen), seen.resized)


def _trace_one(trial: nn.Module, both: Tensor, names: list[str]) -> tuple[Tensor, Trace]:
    """(the traced images, the trace): one image if the network accepts a single one, else two."""
    try:
        images = both[:1].clone().requires_grad_()
        seen = trace(trial, images, also=names)
    except ValueError:  # BatchNorm cannot normalise a single value per channel; any other error is raised again
        images = both.clone().requires_grad_()
        seen = trace(trial, images, also=names)
    trial.eval()
    return images, seen


def _refuse_behind(calls: list[Call], before: list[Call]) -> None:
    for call in calls:
        if call not in before:
            raise ValueError(
                f"site {call.name!r} lies behind every map that is decoded, so its mask token would not reach the loss;"
                " name a site before them, or a later map."
            )


def _measure(trial, images, seen: Trace, sites: list[Call], named: list[Call], last: Call, guesses: dict):
    """({module: {path: layout}} of the calls, {path: layout} of the output): measured by timm's maps, then by impulses,
    then by stripes where a layout is still a guess.
    """
    calls = {call.name: call for call in (*sites, *named, last)}
    targets = {name: hook_target(trial, name) for name in calls}
    read = read_intermediates(
        trial, images[:1], [HookPoint(targets[name], call.guesses) for name, call in calls.items()]
    )
    layouts_of = dict(zip(calls, read, strict=True))
    outputs = verify_outputs(trial, images, targets[last.name], layouts_of[last.name], guesses)
    if images.is_meta:
        return layouts_of, outputs
    unsure = {
        (targets[name], path): calls[name].guesses[path]
        for name, by_path in layouts_of.items()
        for path, layout in by_path.items()
        if layout.evidence == "shape"
    }
    unsure |= {("", path): guesses[path] for path, layout in outputs.items() if layout.evidence == "shape"}
    if unsure:
        modules = list(dict.fromkeys(module for module, _ in unsure))
        measured = read_stripes(
            lambda lit: observe(trial.forward_features, trial, modules, lit), images[:1].detach(), unsure
        )
        for name, by_path in layouts_of.items():
            target = targets[name]
            by_path.update({path: measured[target, path] for path in by_path if (target, path) in measured})
        outputs.update({path: measured["", path] for path in outputs if ("", path) in measured})
    # Tokens that respond to nothing are no map, whatever their number (EfficientViM's hidden states); NCHW maps are.
    return layouts_of, {
        path: layout for path, layout in outputs.items() if layout.evidence != "shape" or len(layout.shape) == 2
    }


@dataclass(frozen=True)
class _Strides:
    """Pixels per cell of a layout's grid, for images of `img_size`."""

    img_size: tuple[int, int]
    declared: list[int]
    resized: bool  # the model resizes the image, so its cells divide its own sizes and not the image's

    def of(self, layout: Layout) -> tuple[float, float]:
        """(vertical, horizontal)."""
        (height, width), (rows, columns) = self.img_size, layout.grid
        return self._of_side(height, rows), self._of_side(width, columns)

    def _of_side(self, size: int, cells: int) -> float:
        if self.resized:
            return size // cells if size % cells == 0 else size / cells
        return cell_stride(size, cells, self.declared)


def _names(names: str | Sequence[str], what: str) -> list[str]:
    if not names or not isinstance(names, str | list | tuple):
        raise ValueError(f'{what}={names!r} names no module; give one or several names, or "auto".')
    return [names] if isinstance(names, str) else list(dict.fromkeys(names))


def last_map(model: nn.Module, calls: list[Call]) -> Call:
    """The deepest map that timm declares; if it declares none, the map that was finished last."""
    names = {name for name, _ in feature_modules(model)}
    declared = [call for call in calls if call.name in names]
    return max(declared or calls[::-1], key=lambda call: call.depth)


def choose_site(
    model: nn.Module,
    calls: list[Call],
    final_stride: float,
    max_stride: float,
    images: Tensor,
    roots: list,
    sizes: _Strides,
) -> Call:
    """The call whose output takes the token, by rule.

    In a hierarchical network it is the last map with half the final stride (the input of the last stage, as in A²MIM's
    ResNet). In an isotropic one it is the map nearest to half the depth. Maps coarser than the mask cell (`max_stride`
    pixels) are chosen only if there is no other. Maps that timm declares come before those that the trace found. A map
    in a branch that the image also passes by (NASNet, Xception) is chosen only if no other is left.
    """
    strides = {id(c): max(sizes.of(guess[0])[0] for guess in c.guesses.values()) for c in calls}
    inside = [c for c in calls if DEPTHS[0] <= c.depth <= DEPTHS[1]] or calls
    fine = [c for c in inside if strides[id(c)] <= max_stride] or inside
    names = {name for name, _ in feature_modules(model)}
    deepest_first = fine[::-1]
    outer_first = sorted(deepest_first, key=lambda c: c.name.count("."))  # a stage before layers inside its last block
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
    """Fraction of the module's inputs (parameters, image) that reach the output without passing through the module.

    Args:
        roots: autograd nodes of the final maps.
        images: the traced images. The result is 1 for an output that does not depend on them (position embeddings).
    """
    nodes = list(call.nodes.values())
    through, bypassing = _sources(nodes, set()), _sources(roots, set(nodes))
    if not any(node.variable is images for node in through):
        return 1.0
    return sum(number for node, number in through.items() if node in bypassing) / sum(through.values())


def used_paths(
    model: nn.Module, call: Call, images: Tensor, finals: list[str], names: Sequence[str] = ()
) -> list[tuple]:
    """Paths of the maps in a module's output that the final maps depend on. They are found by a second forward with a
    zero added to each map. CoaT and transformers' Swin return a fine map that no later module reads.

    Args:
        finals: names of the modules whose outputs are decoded; "" is the output of `forward_features`.
        names: see `also` of `a2mim.wiring.tracing.trace`.
    """
    if len(call.guesses) == 1:
        return list(call.guesses)
    zeros = {path: torch.zeros(1, device=images.device, requires_grad=True) for path in call.guesses}

    def add_zero(module, inputs, output):
        return replace_leaves(output, {path: t + zeros[path] for path, t in leaves(output) if path in zeros})

    handle = model.get_submodule(hook_target(model, call.name)).register_forward_hook(add_zero)
    try:
        again = trace(model, images, also=names)
    finally:
        handle.remove()
    tensors = {"": dict(leaves(again.output)), **again.tensors}
    reached = _sources([t.grad_fn for name in finals for t in tensors[name].values()], set())
    variables = {id(node.variable) for node in reached}
    return [path for path, zero in zeros.items() if id(zero) in variables]


def _sources(starts: list, walls: set) -> dict[Any, int]:
    """Autograd leaves that can be reached from `starts` without passing `walls`, with their numbers of elements."""
    return {node: node.variable.numel() for node in _walk(starts, walls) if hasattr(node, "variable")}


def _walk(starts: list, walls: set) -> set:
    """Autograd nodes that can be reached from `starts` without passing `walls`; `starts` are included."""
    seen, todo = set(), list(starts)
    while todo:
        node = todo.pop()
        if node is None or node in seen or node in walls:
            continue
        seen.add(node)
        todo.extend(following for following, _ in node.next_functions)
    return seen


def find_map(model: nn.Module, seen: Trace, name: str, argument: str = "site") -> Call:
    """The call of the module with that name; ValueError with the reason and the nearest names if there is none.

    Args:
        argument: the argument that held the name, "site" or "maps".
    """
    by_name = {call.name: call for call in seen.calls}
    if name in by_name:
        return by_name[name]
    near = close_names(name, by_name, 4, cutoff=0.3) or [n for n in by_name if "." not in n]
    times = seen.counts.get(name, 0)
    if name not in dict(model.named_modules()):
        why = "is no module of this model"
    elif times == 0:
        why = "is a module that does not run on the way to the features"
    elif times > 1:
        why = f"runs {times} times in one forward, so its output is not one map"
    else:
        why = "returns nothing that has the shape of a feature map of the image"
    use = "can take the mask token" if argument == "site" else "have one"
    raise ValueError(f"{argument} {name!r} {why}; names nearest to it that {use}: {', '.join(near[:8])}.")


def hook_target(model: nn.Module, name: str) -> str:
    """The last child of a plain nn.Sequential, which has the same output.

    timm's gradient checkpointing calls the children of such a stage and not the stage, so a hook on the stage would not
    run.
    """
    module = model.get_submodule(name)
    while type(module) is nn.Sequential and len(module):
        child = next(reversed(module._modules))
        name, module = f"{name}.{child}", module._modules[child]
    return name


def unreached(model: nn.Module, tensors: list[Tensor], among: list[str] | None = None) -> list[str]:
    """Names of the parameters whose gradient, from a random function of the tensors, is None or exactly zero. On the
    meta device, which has no numbers, the names of those that the graph does not reach.
    """
    named = [(name, p) for name, p in model.named_parameters() if among is None or name in among]
    if any(t.is_meta for t in tensors):
        reached = {id(node.variable) for node in _sources([t.grad_fn for t in tensors], set())}
        return [name for name, p in named if id(p) not in reached]
    generator = torch.Generator().manual_seed(1)
    terms = [(t * torch.randn(t.shape, generator=generator, device="cpu").to(t)).sum() for t in tensors]
    loss = sum(terms[1:], terms[0])
    gradients = torch.autograd.grad(loss, [p for _, p in named], retain_graph=True, allow_unused=True)
    return [name for (name, _), g in zip(named, gradients, strict=True) if g is None or not g.any()]


def better_pool(model: TimmModel, output: Any, frozen: list[str]) -> str | None:
    """ "avg" if the model's own pooling reads parameters that pre-training never reaches and averaging does not.

    XCiT's class token passes through class attention, which stays random; the mean of its patch tokens does not. Models
    whose keys depend on the pooling keep their pooling.
    """
    if not frozen or getattr(model, "global_pool", "avg") in ("avg", "", None):
        return None

    def reads_frozen() -> bool:
        return len(unreached(model, [model.forward_head(output, pre_logits=True)], frozen)) < len(frozen)

    keys = list(model.state_dict())
    try:
        if not reads_frozen():
            return None
        model.reset_classifier(0, "avg")
    except (TypeError, ValueError, AssertionError, NotImplementedError):  # the model cannot change its pooling
        return None
    return "avg" if list(model.state_dict()) == keys and not reads_frozen() else None
