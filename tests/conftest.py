import os

# Two workers of pytest on two cores: more threads than that only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
