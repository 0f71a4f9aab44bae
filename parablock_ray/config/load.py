"""From YAML files and command-line overrides to a checked `Config`, and back.

OmegaConf composes, pydantic validates. A file may begin with `defaults: [other, …]`: files relative to it, with
or without `.yaml`, merged in order before the file's own keys. `${name}` stands for another key's value, and for
nothing else: guard.py says what a file may hold.
"""

import hashlib
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from parablock_ray.config.base import Strict
from parablock_ray.config.explain import explain
from parablock_ray.config.guard import check_expansion, check_yaml
from parablock_ray.config.schema import Config
from parablock_ray.errors import UserError

_MOST_DOTS = 10
MAX_FILE_BYTES = 1_000_000  # a config is a page or two; a larger file is some other file

Model = TypeVar("Model", bound=Strict)

_DOTTED_KEY = re.compile(r"\w+(\.\w+)*")


def load_config(path: str | Path, overrides: Sequence[str]) -> Config:
    """The config in `path`, changed by `overrides` (`dotted.key=value`, the value in YAML), checked.

    Raises UserError, one line for each mistake.
    """
    return load_checked(path, overrides, Config)


def load_checked(path: str | Path, overrides: Sequence[str], model: type[Model]) -> Model:
    """`load_config` for any file of ours: what it says as a `model`. Raises UserError, one line for each mistake."""
    composed = _compose(Path(path), ())
    for override in overrides:
        composed = _override(composed, override)
    try:
        return model.model_validate_json(_resolved_json(composed), strict=True)
    except ValidationError as error:
        raise UserError(explain(error, model)) from None


def save_resolved(config: Config, path: str | Path) -> None:
    """Writes YAML that `load_config(path, [])` turns into an equal config."""
    Path(path).write_text(OmegaConf.to_yaml(OmegaConf.create(_escaped(config.model_dump(mode="json")))), "utf-8")


def fingerprint(config: Config) -> str:
    """The sha256, in hex, of the config's canonical JSON, defaults filled in: equal for runs that do the same, wherever
    (`out`) and under whatever `name`."""
    canonical = json.dumps(
        config.model_dump(mode="json", exclude={"name", "out"}), sort_keys=True, separators=(",", ":")
    )
    return hashlib.sha256(canonical.encode()).hexdigest()


def _compose(path: Path, including: tuple[Path, ...]) -> DictConfig:
    """The file with its `defaults` merged below it. `including`: the files that led here, outermost first."""
    chain = (*including, path)
    if path.resolve() in (file.resolve() for file in including):
        raise UserError(f"defaults: go round in a circle: {' -> '.join(str(file) for file in chain)}")
    own = _read(path, including)
    layers = [_compose(_default_file(path, entry), chain) for entry in _defaults(own, path)]
    try:
        merged = OmegaConf.merge(*layers, own)
    except (OmegaConfBaseException, TypeError) as error:
        raise UserError(f"{path}: does not fit what its defaults say: {_reason(error)}") from None
    assert isinstance(merged, DictConfig)
    return merged


def _read(path: Path, including: tuple[Path, ...]) -> DictConfig:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # a name with a NUL in it is a ValueError
        reason = error.strerror if isinstance(error, OSError) else error
        wanted_by = f" (in the defaults of {including[-1]})" if including else ""
        raise UserError(f"{path}: cannot be read: {reason}{wanted_by}") from None
    if len(content) > MAX_FILE_BYTES:
        raise UserError(f"{path}: larger than {MAX_FILE_BYTES:,} bytes; a config is a short YAML file")
    try:
        check_yaml(content, str(path))
        config = OmegaConf.load(io.BytesIO(content))
    except UserError:
        raise
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, OmegaConfBaseException, OSError, ValueError) as error:  # a number of too many digits
        raise UserError(f"{path}: not a valid config: {_reason(error)}") from None
    if not isinstance(config, DictConfig):
        raise UserError(f"{path}: must hold `key: value` lines at the top, not a list")
    return config


def _defaults(config: DictConfig, path: Path) -> list[str]:
    """Takes the `defaults` list out of a file's keys."""
    if "defaults" not in config:
        return []
    entries = OmegaConf.to_container(config)["defaults"]
    del config["defaults"]
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise UserError(f"{path}: defaults: must be a list of file names relative to this file (got {entries!r})")
    return entries


def _default_file(path: Path, entry: str) -> Path:
    file = path.parent / entry
    if not file.name:
        raise UserError(f"{path}: defaults: {entry!r} is no name of a file")
    return file if file.suffix in {".yaml", ".yml"} else file.with_name(f"{file.name}.yaml")


def _override(config: DictConfig, override: str) -> DictConfig:
    key, equals, value = override.partition("=")
    if not equals or not _DOTTED_KEY.fullmatch(key):
        raise UserError(f"{override!r}: not an override; write key=value with a dotted key, like method.rounds=20")
    if key.count(".") > _MOST_DOTS:
        raise UserError(f"{key}: no key is that deep; write key=value with a dotted key, like method.rounds=20")
    try:
        check_yaml(value, key)
        given = OmegaConf.from_dotlist([override])
        if _is_whole(OmegaConf.to_container(given), key):
            OmegaConf.update(config, key, None, force_add=True)
        merged = OmegaConf.merge(config, given)
    except UserError:
        raise
    except (yaml.YAMLError, UnicodeEncodeError) as error:
        reason = error.problem if isinstance(error, yaml.MarkedYAMLError) else _reason(error)
        raise UserError(f"{key}: the value in {override!r} is not valid YAML: {reason}") from None
    except (OmegaConfBaseException, TypeError, ValueError) as error:  # a number of too many digits
        raise UserError(f"{key}: {override!r} does not fit the file: {_reason(error)}") from None
    assert isinstance(merged, DictConfig)
    return merged


def _is_whole(given: Any, key: str) -> bool:
    """Whether what is given for `key` is a mapping that says which of several kinds it is: then it replaces what stood
    there, of whatever kind that was; any other mapping is merged with it."""
    for name in key.split("."):
        given = given[name]
    return isinstance(given, dict) and any(tag in given for tag in ("name", "dist"))


def _resolved_json(config: DictConfig) -> str:
    """JSON, since pydantic's strict mode takes a list for a tuple there but still refuses "12" for 12."""
    check_expansion(OmegaConf.to_container(config))
    try:
        return json.dumps(OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
    except OmegaConfBaseException as error:
        raise UserError(_reason(error)) from None
    except TypeError as error:
        raise UserError(f"not plain YAML (text, numbers, lists, mappings): {error}") from None


def _escaped(value: Any) -> Any:
    """`${` as OmegaConf must find it in a file to leave it alone."""
    match value:
        case str():
            return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
        case list():
            return [_escaped(item) for item in value]
        case dict():
            return {key: _escaped(item) for key, item in value.items()}
    return value


def _reason(error: Exception) -> str:
    """OmegaConf's and PyYAML's messages go on for lines; the first says it, the key tells where."""
    reason = str(error).partition("\n")[0]
    key = getattr(error, "full_key", None)
    return f"{key}: {reason}" if key else reason
