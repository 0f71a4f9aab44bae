"""What secure aggregation and differential privacy go with, beyond their own sections."""

from typing import TYPE_CHECKING

from parablock_ray.config.lora import CollectingMethod
from parablock_ray.config.method import FedCyBGD
from parablock_ray.config.secure import LEAST_CLIENTS

if TYPE_CHECKING:
    from parablock_ray.config.schema import CheckpointConfig, ClientsConfig, Config


def check_sums_are_enough(config: "Config") -> None:
    """With secure aggregation, whose server knows sums only. Raises ValueError."""
    method, server, clients = config.method, config.server, config.clients
    why = "with secure_aggregation.enabled, whose server sees no single update"
    if isinstance(method, CollectingMethod):
        raise ValueError(
            f"method.name: must be one whose server needs only the mean {why}: fedit, ffa_lora, parablock, fedbcd or "
            f"fedavg (got {method.name}, which needs every client's adapters)"
        )
    if isinstance(method, FedCyBGD):
        raise ValueError(
            f"method.name: fedcybgd cannot go {why}: a round has one client, and its sum is that client's update"
        )
    if method.correction == "eager":
        raise ValueError(
            "method.correction: must be own or stale with secure_aggregation.enabled, since eager needs a client's "
            "share of the round, and the plan would have to tell its n_i (got eager)"
        )
    if server.rule.name != "mean":
        raise ValueError(f"server.rule: must be mean {why} (got {server.rule.name})")
    for key in ("max_norm", "max_norm_over_median"):
        if getattr(server, key) is not None:
            raise ValueError(f"server.{key}: leave it out {why}, so no norm of one (got {getattr(server, key):g})")
    if config.network.exchange == "cut_through":
        raise ValueError(
            "network.exchange: must be store_and_forward with secure_aggregation.enabled, since nothing may be "
            "unmasked before it is fixed whose updates are in the sum (got cut_through)"
        )
    if clients.sampling != "uniform":
        raise ValueError(
            "clients.sampling: must be uniform with secure_aggregation.enabled, so that every round has as many "
            f"clients (got {clients.sampling})"
        )
    if clients.cohort_size < LEAST_CLIENTS:
        raise ValueError(
            f"clients.{'num' if clients.per_round is None else 'per_round'}: must be at least {LEAST_CLIENTS} with "
            f"secure_aggregation.enabled: the sum of fewer tells too much of each (got {clients.cohort_size})"
        )


def check_unmasked_once(clients: "ClientsConfig", checkpoint: "CheckpointConfig", staleness: int) -> None:
    """Raises ValueError."""
    why = "with secure_aggregation.enabled, where a round that is done again must be so with the same clients"
    if clients.on_death == "drop":
        raise ValueError(f"clients.on_death: must be replay or fail {why} (got drop)")
    if clients.on_error == "drop" and clients.on_death == "replay":
        raise ValueError(f"clients.on_death: must be fail with clients.on_error: drop {why} (got replay)")
    if clients.on_error == "drop" and checkpoint.every is not None:
        raise ValueError(f"checkpoint.every: leave it out with clients.on_error: drop {why} (got {checkpoint.every})")
    if checkpoint.every is not None and staleness > 0:
        raise ValueError(
            "checkpoint.every: leave it out with secure_aggregation.enabled and method.staleness over 0: the server, "
            "which writes checkpoints, must not know the updates that are pending at the clients; or take a staleness "
            f"of 0 (got {checkpoint.every})"
        )


def check_privacy(config: "Config") -> None:
    """What privacy.clip goes with: everywhere else one client could move what is told by more than the clip, or a round
    would be told twice. Raises ValueError."""
    privacy, clients, method, server = config.privacy, config.clients, config.method, config.server
    if privacy.clip is None:
        if clients.sampling == "poisson":
            raise ValueError("clients.sampling: poisson is for privacy.clip, which divides by the expected clients")
        return
    if config.secure_aggregation.enabled and privacy.quantile is not None:
        raise ValueError(
            "privacy.quantile: must be left out with secure_aggregation.enabled, whose server sees no single update, "
            f"so no norm to count (got {privacy.quantile:g})"
        )
    if config.secure_aggregation.max_weight is not None:
        raise ValueError(
            "secure_aggregation.max_weight: must be left out with privacy.clip, with which all clients weigh 1 (got "
            f"{config.secure_aggregation.max_weight})"
        )
    if isinstance(method, CollectingMethod):
        raise ValueError(
            f"privacy.clip: must be left out with method.name={method.name}, whose clients send whole adapters: what "
            "the server makes of them (products, stacks, single adapters handed on) moves by more than a bound on the "
            "factors says; fedit, ffa_lora and the block methods take it"
        )
    if isinstance(method, FedCyBGD):
        raise ValueError(
            "privacy.clip: must be left out with method.name=fedcybgd, whose rounds have one client: noise that hides "
            "it hides all there is"
        )
    if config.network.exchange == "cut_through":
        raise ValueError(
            "network.exchange: must be store_and_forward with privacy.clip: once an update is refused, chunks that cut "
            "through come again without it, and two noised sums tell more than one (got cut_through)"
        )
    if server.rule.name != "mean":
        raise ValueError(
            f"server.rule: must be mean with privacy.clip, whose noise hides how far a client moves a sum; one client "
            f"may move what another rule takes by more (got {server.rule.name})"
        )
    if server.max_norm_over_median is not None:
        raise ValueError(
            "server.max_norm_over_median: must be left out with privacy.clip: one client's norm would decide on "
            "whether others are refused"
        )
    if server.max_norm is not None and (
        privacy.quantile is not None or privacy.noise == "clients" or server.max_norm <= privacy.clip
    ):
        raise ValueError(
            "server.max_norm: with privacy.clip it refuses those who did not cut their update, so it must be over "
            "the clip, and left out with privacy.quantile, which moves the clip, and with privacy.noise: clients, "
            f"whose noise is larger (got {server.max_norm:g})"
        )
    if clients.sampling == "by_size":
        raise ValueError(
            "clients.sampling: must be uniform or poisson with privacy.clip: its accountant counts on clients that are "
            "drawn alike (got by_size)"
        )
    if clients.over_sample:
        raise ValueError(
            f"clients.over_sample: must be 0 with privacy.clip: who is in time would push others out of the sum "
            f"(got {clients.over_sample})"
        )
    if clients.on_death == "drop":
        raise ValueError(
            "clients.on_death: must be replay or fail with privacy.clip: a round that may have been told would be told "
            "again without the clients that died (got drop)"
        )
    if clients.sampling == "poisson" and (clients.min_participants > 1 or privacy.noise == "clients"):
        raise ValueError(
            "clients.sampling: must be uniform with clients.min_participants over 1 and with privacy.noise: clients: a "
            "poisson draw may be of any size"
        )
    assert privacy.delta is not None
    if privacy.delta >= 1 / clients.num:
        raise ValueError(
            f"privacy.delta: must be less than 1 / clients.num = {1 / clients.num:g}, with which publishing a client "
            f"outright would count as private (got {privacy.delta:g})"
        )
