"""A private run as the driver sees it: its key, the clip of every round, and what was told so far (docs/privacy.md)."""

import hashlib
import math
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from parablock_ray.accounting import accountant_of, check_noise, count_noise_of, noise_on_sum
from parablock_ray.algorithms.base import Method, RoundPlan
from parablock_ray.algorithms.methods import make_method
from parablock_ray.algorithms.population import Population
from parablock_ray.algorithms.privacy import GaussianMean
from parablock_ray.algorithms.secret import derived
from parablock_ray.config import Config
from parablock_ray.config.method import MethodConfig
from parablock_ray.errors import UserError
from parablock_ray.tracking.events import Committed, Event

KEY_FILE = "privacy.key"

_CLIP_LAG = 2  # plans lie ready so many rounds beyond what staleness needs: no clip may need a round after that


class Privacy:
    """Of one run, through all its replays; of a run without privacy everything stays as it is.

    `told`: the config as its processes are told it, with the noise that was solved. `share_key`: from which its clients
    draw their noise, where they do. Told all events, again those of a run that goes on.

    With a quantile γ (Andrew et al., arXiv 1905.03871) the clip of round t is

        C_t = C_0 · Π_{τ ≤ t−2−s} exp(−η (b_τ − γ))        b_τ: the noised share that was not cut in round τ

    over just these rounds, whatever else is known by then: so it does not depend on what arrives when.
    """

    def __init__(self, config: Config, resumes: bool) -> None:
        """Raises UserError where there is no accountant, the budget allows no round, or the key is gone of a run that
        goes on."""
        self._config, self._staleness, self._out = config.privacy, config.method.staleness, Path(config.out)
        self._accountant = accountant_of(config)
        self._unclipped: dict[int, float] = {}  # by round
        self._key: bytes | None = None
        self.told, self.share_key = config, None
        if self._accountant is not None:
            self._key = _read_key(self._out) if resumes else _new_key(config.privacy.seed)
            solved = {"noise_multiplier": self._accountant.noise_multiplier, "target_epsilon": None}
            self.told = config.model_copy(update={"privacy": config.privacy.model_copy(update=solved)})
            check_noise(config, self._accountant.noise_multiplier)
            if config.privacy.noise == "clients":
                self.share_key = derived(self._key, b"shares")

    def line(self) -> str | None:
        """For people."""
        return None if self._accountant is None else f"privacy: {self._accountant.described()}"

    def method(self, config: MethodConfig, population: Population) -> Method:
        """As `make_method`; who is drawn is a secret that no process is told, and it ends within the budget."""
        if self._accountant is None:
            return make_method(config, population)
        assert self._key is not None
        method = make_method(config, replace(population, key=derived(self._key, b"cohorts")))
        return Shortened(method, self._accountant.num_rounds)

    def write_key(self) -> None:
        """Into the run folder, for the server and for a run that goes on; nobody else may read it. Raises UserError."""
        if self._key is None:
            return
        try:
            descriptor = os.open(self._out / KEY_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(self._key.hex())
        except OSError as error:
            raise UserError(f"out: cannot write {self._out / KEY_FILE}: {error.strerror}; choose another") from None

    def forget_key(self) -> None:
        """The run is over: from now on nobody can take its noise off."""
        (self._out / KEY_FILE).unlink(missing_ok=True)

    def note(self, event: Event) -> None:
        """What is told of the run."""
        if isinstance(event, Committed) and event.unclipped is not None:
            self._unclipped[event.round] = event.unclipped

    def with_clip(self, plan: RoundPlan) -> RoundPlan:
        """The plan with the norm to which its clients cut."""
        return plan if self._accountant is None else replace(plan, clip=self._clip(plan.round))

    def columns(self, round: int) -> Mapping[str, float]:
        """Of this round's row in `metrics.jsonl`. Without noise there is no ε."""
        if self._accountant is None:
            return {}
        epsilon = self._accountant.epsilon(round + 1)
        return {"clip": self._clip(round)} | ({"epsilon": epsilon} if math.isfinite(epsilon) else {})

    def summary(self, num_rounds: int) -> Mapping[str, Any]:
        """Of `summary.json`."""
        if self._accountant is None:
            return {}
        epsilon = self._accountant.epsilon(num_rounds)
        return {
            "epsilon": epsilon if math.isfinite(epsilon) else None,
            "delta": self._accountant.delta,
            "noise_multiplier": self._accountant.noise_multiplier,
            "adjacency": self._accountant.adjacency,
        }

    def _clip(self, round: int) -> float:
        first = self._config.clip
        assert first is not None
        if self._config.quantile is None:
            return first
        rounds = range(round - _CLIP_LAG - self._staleness + 1)
        over = sum(self._unclipped[each] - self._config.quantile for each in rounds)
        return first * math.exp(-self._config.clip_lr * over)


@dataclass(frozen=True)
class Shortened:
    """A method that ends after fewer rounds; its learning rates stay those of all that were planned."""

    shortened: Method
    num_rounds: int

    @property
    def staleness(self) -> int:
        return self.shortened.staleness

    def plan(self, round: int) -> RoundPlan:
        """As the method has it."""
        return self.shortened.plan(round)


def rule_of(config: Config, out: Path) -> GaussianMean:
    """What the server makes of a round; `config` is `Privacy.told`. Raises UserError where the key is gone."""
    assert config.privacy.noise_multiplier is not None, "it is solved before the run starts"
    if config.privacy.noise == "clients":
        return GaussianMean(config.clients.cohort_size, noise=0.0, count_noise=None, key=None)
    count_noise = count_noise_of(config)
    noise = noise_on_sum(config.privacy.noise_multiplier, count_noise)
    return GaussianMean(config.clients.cohort_size, noise, count_noise, derived(_read_key(out), b"noise"))


def _new_key(seed: int | None) -> bytes:
    """From the operating system; of an experiment that shall be repeated from a seed."""
    return secrets.token_bytes(32) if seed is None else hashlib.sha256(f"privacy.seed {seed}".encode()).digest()


def _read_key(out: Path) -> bytes:
    """Raises UserError where it is gone: with another one rounds that are done again would be told twice."""
    try:
        return bytes.fromhex((out / KEY_FILE).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{out / KEY_FILE}: the key of this private run cannot be read ({error}), and without it no round can be "
            "done again with the same noise; delete the folder and run again, as a run of its own"
        ) from None
