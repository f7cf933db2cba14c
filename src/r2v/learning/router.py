"""Fits the router (method, section 7).

`decoupled` (default): fit q = P(the SLM fails) by a proper score, calibrate it on validation; the threshold is chosen
later, by what closed-loop play on validation shows. `paper`: the joint Lagrangian with CVaR over groups of episodes; it
trades calibration for cost, which is why it is not the default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r2v.core.errors import StageError
from r2v.core.mlp import Calibration, RiskMLP
from r2v.learning.labels import Rows
from r2v.learning.linear import ranges, standardisation
from r2v.learning.settings import RouterSettings
from r2v.maths import Bools, Floats
from r2v.maths.calibration import fit_isotonic, fit_scaling, nll

Objective = Literal["decoupled", "paper"]
Progress = Callable[..., None]


def fit_mlp(
    train: Rows,
    validation: Rows,
    names: tuple[str, ...],
    settings: RouterSettings,
    objective: Objective,
    *,
    seed: int,
    progress: Progress = lambda *_: None,
    facts: Mapping[str, Any] | None = None,
) -> RiskMLP:
    """Train on `train`; keep the epoch with the best validation NLL and calibrate on `validation`.

    Raises ValueError for the paper's objective with fewer than two groups of CVaR (its CVaR would be the mean).
    """
    groups = np.unique(train.group_N)
    if objective == "paper" and len(groups) < 2:
        raise ValueError(f"CVaR needs at least two groups (perturbation seeds, if not said otherwise), got {len(groups)}")
    if not 0 < train.y_N.mean() < 1:
        raise StageError("the rollouts are all failed or all solved; change the perturbation strength")
    torch.manual_seed(seed)
    mean_F, std_F = standardisation(train.x_NF, train.present_NF)
    x = _standardised(train, mean_F, std_F)
    y = torch.from_numpy(train.y_N).float()
    weight = torch.from_numpy(_weights(train, settings)).float()
    group = torch.from_numpy(np.searchsorted(groups, train.group_N))
    x_val = _standardised(validation, mean_F, std_F)
    net = _network(x.shape[1], settings)
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    updates = settings.epochs * -(-len(x) // settings.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    dual = _Dual(settings) if objective == "paper" else None
    best_nll, best_state, best_epoch = float("inf"), net.state_dict(), 0
    for epoch in range(1, settings.epochs + 1):
        net.train()
        order = torch.randperm(len(x))
        x_epoch, y_epoch, group_epoch, weight_epoch = x[order], y[order], group[order], weight[order]
        for at in range(0, len(x), settings.batch_size):
            piece = slice(at, at + settings.batch_size)
            if len(y_epoch[piece]) < 2:
                continue  # batch norm needs two rows
            logit = net(x_epoch[piece])[:, 0]
            if dual is None:
                loss = (weight_epoch[piece] * (torch.sigmoid(logit) - y_epoch[piece]) ** 2).mean()
            else:
                loss = dual.loss(torch.sigmoid(logit), y_epoch[piece], group_epoch[piece])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if dual is not None:
                dual.ascend()
        if dual is None:  # the joint objective is taken as it ends: its optimum is not the best NLL
            val_nll = nll(_sigmoid(_logits(net, x_val)), validation.y_N, _weights(validation, settings))
            if val_nll < best_nll:
                best_nll, best_epoch = val_nll, epoch
                best_state = {key: value.clone() for key, value in net.state_dict().items()}
        progress(epoch, settings.epochs, objective)
    if dual is None:
        net.load_state_dict(best_state)
    calibration = _calibrate(_logits(net, x_val), validation.y_N, settings.calibration)
    described = {"objective": objective, "rows": len(train), "epoch": best_epoch or settings.epochs, **(facts or {})}
    seen = (np.vstack([train.x_NF, validation.x_NF]), np.vstack([train.present_NF, validation.present_NF]))
    return RiskMLP(names, mean_F, std_F, _folded(net), calibration, described, ranges(*seen))


def fit_values(
    x_NF: Floats,
    present_NF: Bools,
    target_NP: Floats,
    names: tuple[str, ...],
    settings: RouterSettings,
    *,
    seed: int,
    epochs: int,
    facts: Mapping[str, Any],
) -> list[RiskMLP]:
    """P regressions (least squares) that share their hidden layers; `RiskMLP.value` of each is its prediction."""
    torch.manual_seed(seed)
    mean_F, std_F = standardisation(x_NF, present_NF)
    x = torch.from_numpy(np.where(present_NF, (x_NF - mean_F) / std_F, 0.0)).float().contiguous()
    target = torch.from_numpy(target_NP).float()
    net = _network(x.shape[1], settings, target.shape[1])
    optimizer = torch.optim.AdamW(net.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    size = min(settings.batch_size, len(x))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * (len(x) // size))
    net.train()
    for _ in range(epochs):
        order = torch.randperm(len(x))
        for at in range(0, len(x) - size + 1, size):
            rows = order[at : at + size]
            loss = ((net(x[rows]) - target[rows]) ** 2).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    *hidden, (w, b) = _folded(net)
    range_2F = ranges(x_NF, present_NF)
    return [
        RiskMLP(names, mean_F, std_F, (*hidden, (w[:, [p]], b[[p]])), Calibration(), facts, range_2F)
        for p in range(target.shape[1])
    ]


class _Dual:
    """E[c_SLM (1-p) + c_LLM p + kappa y (1-p)] + lambda (CVaR_alpha(R_z) - eps) + w_B E(p - y)^2, and its multiplier.

    Costs in units of c_LLM. R_z is the mean of y (1 - p) over the steps of group z; CVaR the mean of the worst
    ceil(alpha Z) groups present in the batch.
    """

    def __init__(self, settings: RouterSettings) -> None:
        self._s = settings
        self._raw = torch.tensor(1.5, requires_grad=True)
        self._optimizer = torch.optim.Adam([self._raw], lr=settings.dual_learning_rate)
        self._excess = 0.0

    def loss(self, p: Tensor, y: Tensor, group: Tensor) -> Tensor:
        s = self._s
        groups = int(group.max()) + 1
        missed = torch.zeros(groups).index_add_(0, group, y * (1 - p))
        counts = torch.zeros(groups).index_add_(0, group, torch.ones_like(y))
        risk_Z = (missed / counts.clamp_min(1))[counts > 0]
        if len(risk_Z) < 2:
            raise ValueError("a batch holds fewer than two groups of CVaR; raise router.batch_size")
        worst = int(np.ceil(s.alpha * len(risk_Z) - 1e-12))
        cvar = risk_Z.topk(worst).values.mean()
        cost = (1 - p) / s.cost_ratio + p + s.kappa * y * (1 - p)
        self._excess = float(cvar.detach()) - s.epsilon
        multiplier = F.softplus(self._raw.detach())
        return cost.mean() + multiplier * (cvar - s.epsilon) + s.brier_weight * ((p - y) ** 2).mean()

    def ascend(self) -> None:
        self._optimizer.zero_grad()
        (-F.softplus(self._raw) * self._excess).backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()


def _network(inputs: int, settings: RouterSettings, outputs: int = 1) -> nn.Sequential:
    """Linear - batch norm - GELU - dropout, per width; one logit by default. 10,753 weights at 15 inputs, widths 128, 64."""
    layers: list[nn.Module] = []
    for width in settings.hidden:
        layers += [
            nn.Linear(inputs, width),
            nn.BatchNorm1d(width),
            nn.GELU(approximate="tanh"),
            _Dropout(settings.dropout, width, 4 * settings.batch_size),
        ]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


class _Dropout(nn.Module):
    """Dropout whose masks are rows of a table drawn once; a random number for every cell would be half of the fit's time.

    Samples are shuffled every epoch and each batch starts somewhere in the table, so a sample meets a new mask each time.
    """

    def __init__(self, p: float, width: int, rows: int) -> None:
        super().__init__()
        self._table = (torch.rand(rows, width) >= p).float() / (1 - p)

    def forward(self, h: Tensor) -> Tensor:
        if not self.training:
            return h
        start = int(torch.randint(len(self._table) - len(h) + 1, ()))
        return h * self._table[start : start + len(h)]


def _weights(rows: Rows, settings: RouterSettings) -> np.ndarray:
    """Weight of each row, 1 on average."""
    if settings.weighting == "step":
        return np.ones(len(rows))
    _, index, lengths = np.unique(rows.episode_N, return_inverse=True, return_counts=True)
    weight_N = 1 / lengths[index]
    return np.asarray(weight_N / weight_N.mean())


def _standardised(rows: Rows, mean_F: np.ndarray, std_F: np.ndarray) -> Tensor:
    z_NF = np.where(rows.present_NF, (rows.x_NF - mean_F) / std_F, 0.0)
    return torch.from_numpy(z_NF).float().contiguous()


def _logits(net: nn.Sequential, x: Tensor) -> np.ndarray:
    net.eval()
    with torch.inference_mode():
        return np.asarray(net(x)[:, 0].double().numpy())


def _calibrate(logit_N: np.ndarray, y_N: np.ndarray, how: str) -> Calibration:
    slope, bias = fit_scaling(logit_N, y_N, with_bias=how != "temperature")
    if how != "isotonic" or not 0 < y_N.mean() < 1:  # of one outcome all steps of the isotonic fit are one
        return Calibration(slope, bias)
    x, y = fit_isotonic(_sigmoid(slope * logit_N + bias), y_N)
    return Calibration(slope, bias, tuple(x.tolist()), tuple(y.tolist()))


def _sigmoid(logit_N: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-np.clip(logit_N, -40, 40))))


def _folded(net: nn.Sequential) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """(weights [in, out], bias) per linear layer, with the batch norm after it folded in; rounded to float32."""
    modules, layers = list(net), []
    for i, module in enumerate(modules):
        if not isinstance(module, nn.Linear):
            continue
        w = module.weight.detach().double().T
        b = module.bias.detach().double()
        if i + 1 < len(modules) and isinstance(norm := modules[i + 1], nn.BatchNorm1d):
            assert norm.running_var is not None and norm.running_mean is not None
            scale = norm.weight.detach().double() / torch.sqrt(norm.running_var.double() + norm.eps)
            w, b = w * scale, (b - norm.running_mean.double()) * scale + norm.bias.detach().double()
        layers.append((w.float().double().numpy(), b.float().double().numpy()))
    return tuple(layers)
