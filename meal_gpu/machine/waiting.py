"""How threads wait for each other.

PyTorch computes with OpenMP, whose threads wait for the next piece of work by asking for it, over and over, and keep
their core busy meanwhile. On cores that anything else uses, whoever is waited for does not get to run: on two cores
under a load of 3, a small run's training took 69 s so, 18 to 20 s with threads that sleep, 12 to 19 s with one thread.
On cores of its own a round of 40 CamVid images took 20 s asking and 24 s asleep: a little is paid, so as never to lose
much.
"""

import os
from collections.abc import MutableMapping

CHOSEN_BY = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")


def wait_asleep(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Have threads of this process, and of those that it starts, sleep while they wait.

    OpenMP looks once, when it is loaded: to be called before PyTorch is imported. False, and nothing changes, where the
    environment says how threads are to wait.
    """
    if any(name in environment for name in CHOSEN_BY):
        return False
    environment["OMP_WAIT_POLICY"] = "PASSIVE"
    return True
