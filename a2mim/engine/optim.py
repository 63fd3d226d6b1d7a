"""Which parameters decay, at what rate, and how a step is taken."""

from contextlib import contextmanager
from fnmatch import fnmatch
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from timm.optim import create_optimizer_v2, list_optimizers, param_groups_layer_decay
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler
from torch import Tensor, nn

from a2mim.checkpoints import first_line
from a2mim.engine.finetune_settings import FinetuneOptimizer
from a2mim.engine.guard import Guard, problem_of
from a2mim.engine.layers import WithClassifier, published_layers
from a2mim.engine.pretrain_settings import PretrainOptimizer
from a2mim.engine.refine_settings import RefineOptimizer
from a2mim.engine.setting_groups import Schedule
from a2mim.processes.fsdp import exchange_gradients, whole
from a2mim.text import nearest, shortened
from a2mim.wiring.model_type import TimmModel

AMP_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
NO_DECAY = (
    *("pos_embed", "cls_token", "dist_token", "reg_token", "mask_token"),
    *("temperature", "relative_position_bias_table"),
)


def parameter_groups(model: Any, weight_decay: float, lr: float, token_lr_scale: float) -> list[dict]:
    """Splits the trainable parameters of a MIM into: decayed, not decayed, and the mask token with its gamma.

    No decay on norms, biases, LayerScale (all of them have at most one axis), tokens, position embeddings and whatever
    the backbone itself lists; XCiT's `temperature` is ours to name, timm leaves it out.
    """
    backbone = model.encoder.model
    listed = set(backbone.no_weight_decay()) if hasattr(backbone, "no_weight_decay") else set()
    decayed, plain, token = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        inner = name.removeprefix("encoder.model.")
        spared = any(fnmatch(inner, pattern) for pattern in listed)  # XCiT lists "pos_embed.*"
        if name.startswith(("encoder.tokens", "encoder.gammas")):
            token.append(parameter)
        elif parameter.ndim <= 1 or spared or inner.rsplit(".", 1)[-1] in NO_DECAY:
            plain.append(parameter)
        else:
            decayed.append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay, "lr": lr},
        {"params": plain, "weight_decay": 0.0, "lr": lr},
        {"params": token, "weight_decay": 0.0, "lr": lr * token_lr_scale},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, settings: PretrainOptimizer, global_batch_size: int) -> torch.optim.Optimizer:
    """The optimiser of pre-training, at lr = base_lr * global_batch_size / 256."""
    lr = settings.base_lr * global_batch_size / 256
    groups = parameter_groups(model, settings.weight_decay, lr, settings.token_lr_scale)
    return create_optimizer(groups, lr, settings.type, settings.weight_decay, betas=settings.betas)


def layer_groups(model: TimmModel, weight_decay: float, layer_decay: float, classifier: bool = True) -> list[dict]:
    """The trainable parameters of a timm model by layer and by decay, each group with its `lr_scale`.

    The stem is layer 0, then come L layers, then layer L + 1: the classifier and everything after the layers. The
    scale of layer i is layer_decay^(L + 1 - i), as in MAE and BEiT. ConvNeXt and the ResNets that SparK fine-tunes
    have the layers of their authors, see `a2mim.engine.layers`; other networks have timm's (`group_matcher`). What
    does not decay in pre-training does not decay here.

    Args:
        classifier: whether the model has one. Where it has none, layer L + 1 is counted all the same.
    """
    exempt = list(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else []  # patterns, as timm reads them
    exempt += [name for name, _ in model.named_parameters() if name.rsplit(".", 1)[-1] in NO_DECAY]
    headed: Any = model if classifier else WithClassifier(model)
    layer_of = published_layers(model, None if classifier else headed.name)
    if layer_of is None:
        return param_groups_layer_decay(headed, weight_decay, no_weight_decay_list=exempt, layer_decay=layer_decay)
    last = max(layer_of.values())
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            spared = parameter.ndim <= 1 or any(fnmatch(name, pattern) for pattern in exempt)
            scale, decay = layer_decay ** (last - layer_of[name]), 0.0 if spared else weight_decay
            group = {"lr_scale": scale, "weight_decay": decay, "params": []}
            groups.setdefault((scale, decay), group)["params"].append(parameter)
    return list(groups.values())


def scale_classifier(model: TimmModel, groups: list[dict], scale: float) -> list[dict]:
    """The groups of `layer_groups` with the classifier's parameters in groups of their own, whose `lr_scale` is
    multiplied by `scale`.
    """
    heads = model.get_classifier()
    own = {id(p) for head in (heads if isinstance(heads, tuple) else (heads,)) for p in head.parameters()}
    split = []
    for group in groups:
        for inside, factor in ((False, 1.0), (True, scale)):
            chosen = [p for p in group["params"] if (id(p) in own) == inside]
            if chosen:
                split.append({**group, "params": chosen, "lr_scale": factor * group.get("lr_scale", 1.0)})
    return split


def build_layered_optimizer(
    model: nn.Module, settings: FinetuneOptimizer, global_batch_size: int
) -> torch.optim.Optimizer:
    """The optimiser of fine-tuning, at lr = base_lr * global_batch_size / base_batch.

    timm's schedules multiply that rate by each group's `lr_scale`.
    """
    lr = settings.base_lr * global_batch_size / settings.base_batch
    groups = layer_groups(model, settings.weight_decay, settings.layer_decay)
    if settings.head_lr_scale != 1:
        groups = scale_classifier(model, groups, settings.head_lr_scale)
    extra = {"momentum": settings.momentum, "nesterov": settings.nesterov} if of_sgd(settings.type) else {}
    return create_optimizer(groups, lr, settings.type, settings.weight_decay, betas=settings.betas, **extra)


def build_refining_optimizer(
    model: Any, settings: RefineOptimizer, heads_decay: float, global_batch_size: int
) -> torch.optim.Optimizer:
    """The optimiser of refinement, at lr = base_lr * global_batch_size / 256. Each group has "part".

    Args:
        model: a `Refiner`. The layers of its encoder have decaying rates; its heads have the full rate, and a decay of
            `heads_decay` on their matrices.
    """
    lr = settings.base_lr * global_batch_size / 256
    heads: dict[float, list[nn.Parameter]] = {}
    for parameter in model.heads.parameters():
        if parameter.requires_grad:
            heads.setdefault(heads_decay if parameter.ndim > 1 else 0.0, []).append(parameter)
    groups: list[dict] = [
        {"params": parameters, "weight_decay": decay, "lr_scale": 1.0, "part": "heads"}
        for decay, parameters in heads.items()
    ]
    for group in layer_groups(model.encoder.model, settings.weight_decay, settings.layer_decay, classifier=False):
        groups.append({**group, "part": "encoder"})
    return create_optimizer(groups, lr, settings.type, settings.weight_decay, betas=settings.betas)


def of_sgd(name: str) -> bool:
    """Whether an optimiser takes a momentum in place of betas."""
    return name.lower() in ("sgd", "momentum")


def create_optimizer(
    groups: list[dict], lr: float, name: str, weight_decay: float, betas: tuple, **arguments
) -> torch.optim.Optimizer:
    """timm's optimiser of that name; arguments: what it takes beyond rate, decay and betas."""
    if name.lower() == "adamw":
        arguments["fused"] = True
    if not of_sgd(name):
        arguments["betas"] = betas
    try:
        return create_optimizer_v2(groups, opt=name.lower(), lr=lr, weight_decay=weight_decay, **arguments)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"optimizer.type={name!r} cannot be built by timm.optim: {error}") from error


def check_optimizer(name: str) -> None:
    """ValueError where timm.optim has no optimiser of that name."""
    known = [str(known_name) for known_name in list_optimizers()]
    if name.lower().removeprefix("lookahead_") not in known:
        raise ValueError(f"optimizer.type={name!r} is not an optimiser of timm.optim{nearest(name.lower(), known)}")


def build_schedule(optimizer, settings: Schedule, steps_per_epoch: int, total_steps: int):
    """A timm scheduler in closed form: the rate is a function of the step, so nothing needs saving and a run may be
    prolonged.
    """
    warmup = min(round(settings.warmup_epochs * steps_per_epoch), total_steps - 1)
    common: dict[str, Any] = {
        "warmup_t": warmup,
        "warmup_lr_init": getattr(settings, "warmup_lr", 0.0),
        "t_in_epochs": False,
    }
    if settings.type == "step":
        return MultiStepLRScheduler(
            optimizer,
            decay_t=[epoch * steps_per_epoch + 1 for epoch in settings.decay_epochs],  # timm decays a step early
            decay_rate=settings.decay_rate,
            warmup_prefix=False,  # epochs count from the start of the run, as the recipe means them
            **common,
        )
    if settings.warmup == "multiplied":
        return MultipliedCosine(optimizer, t_initial=total_steps, lr_min=settings.min_lr, **common)
    prefix = settings.warmup == "before"
    steps = total_steps - warmup if prefix else total_steps
    return CosineLRScheduler(optimizer, t_initial=steps, lr_min=settings.min_lr, warmup_prefix=prefix, **common)


class MultipliedCosine(CosineLRScheduler):
    """A cosine over the whole run, multiplied in the warm-up by a factor that rises linearly from
    `warmup_lr_init` / peak to 1.

    Source: mmengine's LinearLR and CosineAnnealingLR together, as OpenMixup's recipes of A²MIM chain them.
    """

    def _get_lr(self, t: int) -> list[float]:
        """The rate of each group at step t."""
        warmup, self.warmup_t = self.warmup_t, 0
        try:
            rates = super()._get_lr(t)
        finally:
            self.warmup_t = warmup
        if t >= warmup:
            return rates
        starts = [self.warmup_lr_init / peak if peak else 0.0 for peak in self.base_values]
        return [rate * (start + (1 - start) * t / warmup) for rate, start in zip(rates, starts, strict=True)]


def fit_states(optimizer: torch.optim.Optimizer) -> None:
    """Gives loaded states the layout of their parameters: a fused kernel trusts that, and else reads memory outside.

    Raises:
        ValueError: a state has another shape.
    """
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if not isinstance(value, Tensor) or not value.ndim:
                continue
            if value.shape != parameter.shape:
                shapes = tuple(value.shape), tuple(parameter.shape)
                raise ValueError(f"{shortened(key)} of the optimiser is {shapes[0]} for a parameter of {shapes[1]}")
            if value.layout != torch.strided or value.stride() != parameter.stride():
                state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value.to_dense())


class StepWrapper(OptimWrapper):
    """mmengine's OptimWrapper with autocast on any device, loss scaling for fp16, and a guard in front of the weights.

    A step that is not finite changes nothing. With an optimiser that takes `found_inf` (torch's fused AdamW), the
    device skips it, the host does not wait, and `problem_of` says what was wrong once it has the `numbers`.
    With any other optimiser the host waits once a step for these numbers.

    Args:
        optimizer: the optimiser.
        amp: None, "bf16" or "fp16".
        device_type: "cpu" or "cuda".
        accumulate: backward passes a step.
        clip_grad: largest L2 norm of the gradient, or None.

    Attributes:
        grad_norm: 0-d on the device: the gradient's L2 norm in the last step, before it was clipped; None before the
            first.

    Raises:
        FloatingPointError: from `update_params`, where the host waits, before the weights change: the loss, or the
            gradient's norm, is not finite.
    """

    def __init__(
        self, optimizer, amp: str | None, device_type: str, accumulate: int = 1, clip_grad: float | None = None
    ):
        super().__init__(optimizer, accumulative_counts=accumulate)
        self.amp, self.device_type, self.max_norm = amp, device_type, clip_grad
        self.scaler = torch.amp.GradScaler(device_type, enabled=amp == "fp16")
        self.guard = Guard()
        self.grad_norm: Tensor | None = None
        self.untried = False  # whether the optimiser holds a loaded state with which no step has been taken
        self.skips_itself = getattr(optimizer, "_step_supports_amp_scaling", False)

    @contextmanager
    def optim_context(self, model: nn.Module):
        """Autocast, and no gradient exchange before the last micro-batch of a step."""
        if not self.guard.losses:
            self.guard.begin(model)
        exchange_gradients(model, self.should_sync())
        amp = torch.autocast(
            self.device_type, AMP_TYPES.get(self.amp or "", torch.bfloat16), enabled=self.amp is not None
        )
        with super().optim_context(model), amp:
            yield

    def update_params(self, loss: Tensor, **_) -> None:
        super().update_params(self.guard.see(loss))

    def backward(self, loss: Tensor, **kwargs) -> None:
        super().backward(self.scaler.scale(loss), **kwargs)

    def step(self, **_) -> None:
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.grad_norm = norm = whole(nn.utils.get_total_norm([p.grad for p in parameters]))
        self.guard.judge(norm, self.overflows)
        if self.max_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.max_norm, norm)
        if not self.skips_itself:
            self._refuse_now()
        elif not self.overflows:  # else the scaler says what to skip
            assert self.guard.bad is not None
            self.optimizer.found_inf, self.optimizer.grad_scale = self.guard.bad.float(), None
        with self._telling_unfit_state():
            self.scaler.step(self.optimizer)
        self.scaler.update()

    @contextmanager
    def _telling_unfit_state(self):
        """Around a step: whether a loaded state fits the parameters shows at its first step alone.

        Raises:
            ValueError: it does not.
        """
        try:
            yield
        except (RuntimeError, TypeError, KeyError, AttributeError, ValueError, IndexError) as error:
            if not self.untried or isinstance(error, torch.OutOfMemoryError):
                raise
            raise ValueError(
                f"the checkpoint's state of the optimiser does not fit the model ({first_line(error)}): nothing was"
                " saved; delete this checkpoint to go on from the one before it, or start a new run"
            ) from error
        self.untried = False

    @property
    def overflows(self) -> bool:
        """Whether a gradient may be infinite in an ordinary step."""
        return self.amp == "fp16"

    def numbers(self) -> Tensor:
        """The numbers of the last step on the device, see `Guard.numbers`."""
        assert self.grad_norm is not None
        return self.guard.numbers(self.grad_norm)

    def problem_of(self, numbers: list[float]) -> str | None:
        """What is not finite in `numbers`, once they are on the host; None where all is well."""
        return problem_of(numbers, self.overflows)

    def _refuse_now(self) -> None:
        """Waits for the device, and raises FloatingPointError where the step is not finite."""
        found = self.problem_of(self.numbers().tolist())
        if found:
            self.guard = Guard()
            self.zero_grad()
            raise FloatingPointError(found)

    def initialize_count_status(self, model: nn.Module, init_counts: int, max_counts: int) -> None:
        """Counts are in steps here; OptimWrapper counts backward passes."""
        self._inner_count, self._max_counts = (n * self._accumulative_counts for n in (init_counts, max_counts))
        self._remainder_counts = 0

    def state_dict(self) -> dict:
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.skips_itself:
            fit_states(self.optimizer)
        self.untried = True
