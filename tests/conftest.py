"""For all tests."""

import os

# Before torch is imported anywhere, also in processes that tests start: the networks here are so small that a second
# thread gains nothing, and costs much where other processes want the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
