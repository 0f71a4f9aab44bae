"""What the processes of our own cluster load while they wait to be told what they are. Ray imports this by its name."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch reads it; only workers of one thread find such processes

from parablock_ray.importing import fast_imports

with fast_imports():
    import parablock_ray.runtime.client
    import parablock_ray.runtime.server  # noqa: F401
    from parablock_ray.training.model import import_model_code

    import_model_code()
