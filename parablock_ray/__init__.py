"""Communication-overlapped federated fine-tuning of large language models, on Ray."""

import os

# New memory for large tensors in pages of 2 MiB, where Linux lets a program ask for them: what writes it first takes
# less time (docs/performance.md). torch reads this at its first tensor; 0 keeps to small pages.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"
