"""How much memory this process has used, and how much of a GPU it may."""

import resource
import sys
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ProcessMemory:
    """What a process takes: bytes of the host at most so far, and a share of its GPU's memory (0 where it has none)."""

    host_bytes: int
    device_share: float


def peak_rss_bytes() -> int:
    """The process's largest resident set so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def process_memory(device: torch.device) -> ProcessMemory:
    """Of this process, while it is alone on `device`: torch keeps what it once took, so now is the most so far."""
    if device.type != "cuda":
        return ProcessMemory(peak_rss_bytes(), 0.0)
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    return ProcessMemory(peak_rss_bytes(), 1 - free_bytes / total_bytes)


def limit_device_memory(device: torch.device, share: float) -> None:
    """More than this share of a GPU's memory is refused as if the device were full: others share it."""
    if device.type == "cuda" and share < 1:
        torch.cuda.set_per_process_memory_fraction(share, device)
