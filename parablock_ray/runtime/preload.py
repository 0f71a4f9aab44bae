"""What the processes of our own cluster load while they wait to be told what they are. Ray imports this by its name."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch reads it; only workers of one thread find such processes

import parablock_ray.runtime.client
import parablock_ray.runtime.server  # noqa: F401
