"""What every config model is: closed (no unknown keys) and immutable."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A config section. Unknown keys are mistakes; nothing changes after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, protected_namespaces=()
    )
