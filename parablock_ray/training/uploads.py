"""Adapters that clients sent, kept in the run folder: `uploads/round-00003.safetensors`, a flat vector by client."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from parablock_ray.checkpoint import save_tensors
from parablock_ray.errors import UserError
from parablock_ray.tracking.full_disk import RESUME, told_if_full


def write_uploads(run_folder: Path, round: int, uploads: Mapping[int, Tensor]) -> None:
    """One file for the round; none where nothing is to be kept. Raises RunFailed where the disk takes no more."""
    if not uploads:
        return
    folder = run_folder / "uploads"
    with told_if_full(folder, RESUME):
        folder.mkdir(exist_ok=True)
        by_name = {str(client): upload for client, upload in uploads.items()}
        save_tensors(by_name, folder / f"round-{round:05}.safetensors", None)


def read_uploads(run_folder: Path, num_rounds: int) -> Iterator[Mapping[int, Tensor]]:
    """Every round's uploads by client, in round order. Raises UserError where one is missing."""
    for round in range(num_rounds):
        file = run_folder / "uploads" / f"round-{round:05}.safetensors"
        if not file.exists():
            raise UserError(
                f"{run_folder}: holds no uploads of round {round} ({file.relative_to(run_folder)}); run it again with "
                "method.keep_uploads=true"
            )
        try:
            uploads = {int(client): upload for client, upload in load_file(file).items()}
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{file}: not the uploads of a round: {error}; run it again") from None
        yield uploads
