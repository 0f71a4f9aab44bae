"""What the config knows, read off its models."""

import typing

from parablock_ray.config.method import MethodConfig


def method_names() -> set[str]:
    """Every value that `method.name` may have."""
    union = typing.get_args(MethodConfig)[0]
    return {name for model in typing.get_args(union) for name in typing.get_args(model.model_fields["name"].annotation)}
