"""Communication-overlapped federated fine-tuning of large language models, on Ray."""

import os

# New memory for whole blocks in pages of 2 MiB, where Linux lets a program ask for them: half the time of what first
# writes it. torch reads this once, so it comes before torch; the processes of a run inherit it.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"
