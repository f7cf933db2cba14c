"""Finite-horizon decision processes in which an intervention has a price (helper paper; method, section 8). Pure functions.

Axes: H steps, A actions (0 goes on alone), S states. All that a plan promises is about the given model, so with estimated
transitions its usage must be checked on episodes that were played.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from r2v.maths import Floats


@dataclass(frozen=True, eq=False)
class Mdp:
    """Mass of `p_HASS[t, a, s]` missing from 1 is the chance that the episode ends with that step."""

    p_HASS: Floats
    win_HAS: Floats
    """Chance that the episode ends with that step, solved."""
    start_S: Floats
    calls_A: Floats
    """Teacher calls of each action; `calls_A[0]` is 0."""


def limited(mdp: Mdp, calls: int) -> Mdp:
    """The same process in which an episode has so many teacher calls: state (b, s), number b x S + s, has b calls left.

    An action that costs more than is left does what action 0 does, so that no plan chooses it.
    """
    H, A, S, _ = mdp.p_HASS.shape
    p_HABSBS, win_HABS = np.zeros((H, A, calls + 1, S, calls + 1, S)), np.zeros((H, A, calls + 1, S))
    for b in range(calls + 1):
        for a, cost in enumerate(mdp.calls_A.astype(int)):
            a_taken, left = (a, b - cost) if cost <= b else (0, b)
            p_HABSBS[:, a, b, :, left] = mdp.p_HASS[:, a_taken]
            win_HABS[:, a, b] = mdp.win_HAS[:, a_taken]
    start_BS = np.zeros((calls + 1, S))
    start_BS[calls] = mdp.start_S
    states = (calls + 1) * S
    p_HASS = p_HABSBS.reshape(H, A, states, states)
    return Mdp(p_HASS, win_HABS.reshape(H, A, states), start_BS.ravel(), mdp.calls_A)


@dataclass(frozen=True, eq=False)
class Plan:
    """The best policy at one price of a call, and what it does from the start."""

    price: float
    action_HS: NDArray[np.int64]
    q_HAS: Floats
    """Success minus price x calls still to come, by action."""
    calls: float
    """Expected teacher calls of an episode."""
    success: float


def plan(mdp: Mdp, price: float) -> Plan:
    """Backward induction; ties go to the action with the lower number, so to no intervention."""
    H, A, S, _ = mdp.p_HASS.shape
    action_HS, q_HAS = np.zeros((H, S), dtype=np.int64), np.zeros((H, A, S))
    value_S, calls_S, success_S = np.zeros(S), np.zeros(S), np.zeros(S)
    rows = np.arange(S)
    for t in reversed(range(H)):
        p_ASS, win_AS = mdp.p_HASS[t], mdp.win_HAS[t]
        q_HAS[t] = win_AS + p_ASS @ value_S - price * mdp.calls_A[:, None]
        action_HS[t] = chosen = np.argmax(q_HAS[t] - 1e-12 * mdp.calls_A[:, None], axis=0)
        value_S = q_HAS[t][chosen, rows]
        calls_S = mdp.calls_A[chosen] + (p_ASS @ calls_S)[chosen, rows]
        success_S = (win_AS + p_ASS @ success_S)[chosen, rows]
    return Plan(price, action_HS, q_HAS, float(mdp.start_S @ calls_S), float(mdp.start_S @ success_S))


@dataclass(frozen=True)
class Mix:
    """Two plans, of which one is drawn for each episode: `dear` with probability `weight`."""

    cheap: Plan
    """The lower usage (the higher price)."""
    dear: Plan
    weight: float

    @property
    def calls(self) -> float:
        return (1 - self.weight) * self.cheap.calls + self.weight * self.dear.calls

    @property
    def success(self) -> float:
        return (1 - self.weight) * self.cheap.success + self.weight * self.dear.success


def meet_budget(mdp: Mdp, calls: float) -> Mix:
    """The best policy with `calls` expected teacher calls an episode: usage falls as the price rises, so bisect the price,
    then mix the plans on both sides of the jump. Equals the optimum of the linear program over occupancies.

    A budget beyond what interventions are ever worth gives the free plan alone.
    """
    free = plan(mdp, 0.0)
    if free.calls <= calls:
        return Mix(free, free, 1.0)
    low, high = free, plan(mdp, 1.0 + 1e-9)  # a call cannot gain more than one success: at this price no policy escalates
    for _ in range(60):
        middle = plan(mdp, (low.price + high.price) / 2)
        if middle.calls > calls:
            low = middle
        else:
            high = middle
        if high.price - low.price < 1e-12:
            break
    gap = low.calls - high.calls
    return Mix(high, low, 0.0 if gap <= 0 else (calls - high.calls) / gap)
