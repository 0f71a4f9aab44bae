"""What a run is told: one YAML file, overrides, and the models that check them. Imports no torch."""

from parablock_ray.config.differences import differing_keys
from parablock_ray.config.load import fingerprint, load_config, save_resolved
from parablock_ray.config.schema import Config

__all__ = ["Config", "differing_keys", "fingerprint", "load_config", "save_resolved"]
