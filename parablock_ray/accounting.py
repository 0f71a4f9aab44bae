"""How much of a client a private run tells: ε after so many rounds, and the noise for an ε (docs/privacy.md).

The figures are those of the library `dp-accounting`, of its Rényi accountant with its own orders. Here is only which of
its events a round is.
"""

import logging
import math
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from parablock_ray.config import Config
from parablock_ray.errors import UserError
from parablock_ray.secure_terms import fixed_point

_NEVER = 10  # standard deviations: 1.5e-23 is the probability that a number is beyond


@dataclass(frozen=True)
class Sampling:
    """Who a round is for, as the accountant may count on. `num_drawn` of `num_clients` each round; `is_poisson`: so
    many are expected. With `is_fresh` a round is a function of its own draw and of what was published, of no other
    draw: see docs/privacy.md why a fixed number of clients counts as sampled only then."""

    num_clients: int
    num_drawn: int
    is_poisson: bool
    is_fresh: bool

    @classmethod
    def of(cls, config: Config) -> "Sampling":
        method, clients = config.method, config.clients
        carries_over = method.staleness > 0 and method.correction != "stale"
        return cls(clients.num, clients.cohort_size, clients.sampling == "poisson", not carries_over)

    @property
    def amplifies(self) -> bool:
        """Whether it counts that a client is not in every round."""
        return self.num_drawn < self.num_clients and (self.is_poisson or self.is_fresh)


class Accountant:
    """Of one config with privacy on. Raises UserError where the library is missing."""

    def __init__(self, config: Config) -> None:
        assert config.privacy.delta is not None, "the config says so"
        self._library = _library()
        self._sampling = Sampling.of(config)
        self._privacy = config.privacy
        self._planned_rounds = config.method.rounds
        self.delta = config.privacy.delta
        self._is_hidden_from_the_server = config.secure_aggregation.enabled and config.privacy.noise == "clients"

    @cached_property
    def noise_multiplier(self) -> float:
        """Standard deviation of the noise over the clip, as given or solved for `target_epsilon`. With a quantile: of
        what both releases of a round come to together."""
        target = self._privacy.target_epsilon
        if target is None:
            assert self._privacy.noise_multiplier is not None, "the config says so"
            return self._privacy.noise_multiplier
        solved = self._library.calibrate_dp_mechanism(
            self._fresh, lambda noise: self._rounds(noise, self._planned_rounds), target, self.delta
        )
        return float(solved)

    def epsilon(self, num_rounds: int) -> float:
        """After so many rounds; infinite without noise."""
        return self._epsilon(self.noise_multiplier, num_rounds)

    @cached_property
    def num_rounds(self) -> int:
        """So many of the planned rounds keep within `max_epsilon`. Raises UserError where none does."""
        limit = self._privacy.max_epsilon
        if limit is None or self.epsilon(self._planned_rounds) <= limit:
            return self._planned_rounds
        fits, passes = 0, self._planned_rounds
        while passes - fits > 1:
            middle = (fits + passes) // 2
            fits, passes = (middle, passes) if self.epsilon(middle) <= limit else (fits, middle)
        if fits == 0:
            raise UserError(
                f"privacy.max_epsilon: {limit:g} is passed by the first round, whose epsilon is {self.epsilon(1):.4g}; "
                "a larger privacy.noise_multiplier, more clients to draw from, or a larger max_epsilon"
            )
        return fits

    @property
    def adjacency(self) -> str:
        """Which data sets the promise tells apart."""
        replaces = self._sampling.amplifies and not self._sampling.is_poisson
        return "replace_one_client" if replaces else "add_or_remove_one_client"

    def described(self) -> str:
        """For people: what the planned rounds come to."""
        epsilon, told = self.epsilon(self.num_rounds), ""
        if self._sampling.amplifies and self._is_hidden_from_the_server:
            knows = copy(self)  # with the noise that was solved
            knows._sampling = replace(self._sampling, num_drawn=self._sampling.num_clients)
            told = f"; against the server, which knows who takes part, {knows.epsilon(self.num_rounds):.4g}"
        least = (
            "" if self.num_rounds == self._planned_rounds else f" of {self._planned_rounds}, for privacy.max_epsilon"
        )
        return (
            f"epsilon {epsilon:.4g} at delta {self.delta:g} after {self.num_rounds} rounds{least}, noise multiplier "
            f"{self.noise_multiplier:.4g}, {self._counted()}{told}"
        )

    def _counted(self) -> str:
        sampling = self._sampling
        if sampling.amplifies:
            how = "Poisson" if sampling.is_poisson else "fixed-size"
            return f"{how} sampling of {sampling.num_drawn} of {sampling.num_clients} clients"
        if sampling.num_drawn < sampling.num_clients:
            return "every client counted in every round, since sampling: uniform with staleness amplifies nothing"
        return "every client in every round"

    def _epsilon(self, noise: float, num_rounds: int) -> float:
        if noise == 0:
            return math.inf
        accountant = self._fresh()
        accountant.compose(self._rounds(noise, num_rounds))
        return float(accountant.get_epsilon(self.delta))

    def _fresh(self) -> Any:
        relations = self._library.NeighboringRelation
        replaces = self.adjacency == "replace_one_client"
        relation = relations.REPLACE_ONE if replaces else relations.ADD_OR_REMOVE_ONE
        return self._library.rdp.RdpAccountant(neighboring_relation=relation)

    def _rounds(self, noise: float, num_rounds: int) -> Any:
        library, sampling = self._library, self._sampling
        # What is replaced moves the sum by twice the clip: once for what goes, once for what comes.
        sensitivity = 2 if self.adjacency == "replace_one_client" else 1
        event = library.GaussianDpEvent(noise / sensitivity)
        if sampling.amplifies and sampling.is_poisson:
            event = library.PoissonSampledDpEvent(sampling.num_drawn / sampling.num_clients, event)
        elif sampling.amplifies:
            event = library.SampledWithoutReplacementDpEvent(sampling.num_clients, sampling.num_drawn, event)
        return library.SelfComposedDpEvent(event, num_rounds)


def accountant_of(config: Config) -> Accountant | None:
    """None for a run without privacy. Raises UserError."""
    return Accountant(config) if config.privacy.is_on else None


def privacy_line(config: Config) -> str | None:
    """For people: what a run of this config comes to; None without privacy. Raises UserError where it is refused."""
    accountant = accountant_of(config)
    if accountant is None:
        return None
    check_noise(config, accountant.noise_multiplier)
    return f"privacy: {accountant.described()}"


def check_noise(config: Config, noise_multiplier: float) -> None:
    """Whether all of it can be added. Raises UserError."""
    noise_on_sum(noise_multiplier, count_noise_of(config))
    secure, privacy = config.secure_aggregation, config.privacy
    if not secure.enabled or privacy.noise == "server":
        return
    assert privacy.clip is not None, "a private run has its clip"
    share = share_noise(config, noise_multiplier, privacy.clip)
    if share == 0:
        return
    encoding = fixed_point(config, largest=1)
    if 2 / encoding.scale > share:
        raise UserError(
            f"secure_aggregation.fraction_bits: {encoding.fraction_bits} are too few with privacy.noise: clients, of "
            f"whose noise, {share:.3g} each, rounding would take some; take more, or leave them out"
        )
    least = privacy.clip + _NEVER * share
    if secure.clip < least:
        raise UserError(
            f"secure_aggregation.clip: must be at least {least:.4g} with privacy.noise: clients, that is privacy.clip "
            f"and {_NEVER} standard deviations of a client's noise, of which nothing may be cut (got {secure.clip:g})"
        )


def share_noise(config: Config, noise_multiplier: float, clip: float) -> float:
    """Of `privacy.noise: clients`, the standard deviation of one client's share: of as few clients as may be left the
    shares are the whole noise; of more there is more."""
    return noise_multiplier * clip / math.sqrt(config.clients.min_participants)


def noise_on_sum(noise_multiplier: float, count_noise: float | None) -> float:
    """Of a round that tells a sum (sensitivity 1, in clips) and a count (sensitivity 1/2), and in all as much as one
    release with `noise_multiplier`: the noise on the sum. Andrew et al., arXiv 1905.03871, theorem 1. None: no count.

    Raises UserError where the count alone tells more.
    """
    if count_noise is None:
        return noise_multiplier
    if 2 * count_noise <= noise_multiplier:
        raise UserError(
            f"privacy.count_noise: must be over half of the noise multiplier, which is {noise_multiplier:.4g} (got "
            f"{count_noise:g}): else the count alone tells more than the whole round may"
        )
    return float((noise_multiplier**-2 - (2 * count_noise) ** -2) ** -0.5)


def count_noise_of(config: Config) -> float | None:
    """The noise on the count of who is below the clip, of the `quantile`; None: nobody counts."""
    if config.privacy.quantile is None:
        return None
    return config.privacy.count_noise or config.clients.cohort_size / 20


def _library() -> Any:
    try:
        import dp_accounting  # takes a second
        import dp_accounting.rdp
    except ImportError as error:
        raise UserError(
            f"privacy: needs dp-accounting, which cannot be imported ({error}): pip install 'parablock-ray[private]'"
        ) from None
    logging.getLogger("absl").addFilter(_is_news)
    return dp_accounting


def _is_news(record: logging.LogRecord) -> bool:
    """The library leaves out orders for which a series of its own does not converge, which makes ε larger if anything,
    and says so for each, many times."""
    return "_compute_log_a_frac" not in record.getMessage()
