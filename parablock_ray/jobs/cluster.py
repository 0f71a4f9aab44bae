"""The way to a cluster's jobs: is it there, does it let us in, is its Ray one of ours? Asked before all else."""

import logging
import os
from collections.abc import Mapping
from http.client import HTTPException
from importlib.metadata import requires
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from packaging.requirements import Requirement
from packaging.version import Version
from ray.job_submission import JobSubmissionClient

from parablock_ray.errors import UserError
from parablock_ray.json_files import from_json

_TIMEOUT_S = 10.0
_MOST_BYTES = 1_000_000  # of an answer
_RAYS_OWN_TOKEN = Path("~/.ray/auth_token")


def find_token(path: Path | None) -> str | None:
    """The cluster's token: of this file, else where Ray's own variables say; None where they ask for none.

    Raises UserError where there should be one and is not.
    """
    if path is None:
        if os.environ.get("RAY_AUTH_MODE") != "token":
            return None
        if os.environ.get("RAY_AUTH_TOKEN"):
            return os.environ["RAY_AUTH_TOKEN"].strip()
        path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or _RAYS_OWN_TOKEN)
    try:
        token = path.expanduser().read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--token-path: no token in {path} ({error}); copy the file from the cluster's head") from None
    if not token:
        raise UserError(f"--token-path: {path} is empty; copy the file from the cluster's head")
    return token


def connect(address: str, token: str | None) -> JobSubmissionClient:
    """A client of the cluster's jobs. `address`: of its dashboard, http(s)://host:port.

    Raises UserError where nothing answers, the token is missing or wrong, or the cluster's Ray is not one of ours.
    """
    if not address.startswith(("http://", "https://")):
        raise UserError(f"--address: must be that of the dashboard, like http://head:8265 (got {address!r})")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    refuse_other_ray(ray_version(address.rstrip("/"), headers))
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray takes this over its argument, and so over RAY_ADDRESS
    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.WARNING)  # Ray would tell of every upload
    return JobSubmissionClient(address, headers=headers)


def ray_version(address: str, headers: Mapping[str, str]) -> str:
    """The version of the cluster's Ray. Raises UserError as `connect` does."""
    try:
        with urlopen(Request(f"{address}/api/version", headers=dict(headers)), timeout=_TIMEOUT_S) as answer:
            told = from_json(answer.read(_MOST_BYTES))
            return str(Version(told["ray_version"]))
    except HTTPError as error:
        raise _refused(address, error) from None
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise UserError(
            f"--address: no Ray dashboard answers at {address} ({reason}); start the cluster, or mend the address"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"--address: what answers at {address} is no Ray dashboard; mend the address") from None


def _refused(address: str, error: HTTPError) -> UserError:
    match error.code:
        case 401:
            return UserError(
                f"--token-path: the cluster at {address} asks for its token; give the file that holds it, or set "
                "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
            )
        case 403:
            return UserError(f"--token-path: the cluster at {address} refuses this token; take the file of its head")
    return UserError(f"--address: {address} answers {error.code} {error.reason}; is it a Ray dashboard?")


def refuse_other_ray(there: str) -> None:
    """Raises UserError where the cluster's Ray is outside of what this package is made for."""
    [ours] = [each for each in map(Requirement, requires("parablock-ray") or []) if each.name == "ray"]
    if not ours.specifier.contains(there, prereleases=True):
        raise UserError(
            f"--address: the cluster runs Ray {there}, and parablock_ray needs ray{ours.specifier}; "
            "use a cluster with another Ray"
        )
