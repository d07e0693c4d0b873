"""Random numbers depend on (seed, round, purpose) alone, never on what was drawn before.

A run that is resumed in round 5 therefore draws what it would have drawn without the interruption.
"""

import hashlib

import torch


def derive(seed: int, round_: int, purpose: str) -> int:
    """A 63-bit number that depends on nothing but its arguments, equal on every platform."""
    digest = hashlib.blake2b(f"{seed}/{round_}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def of_member(purpose: str, member: int) -> str:
    """A purpose of its own for each member of an ensemble; the first draws as the one network of a round does."""
    return f"{purpose} of member {member}" if member else purpose


def generator(seed: int, round_: int, purpose: str) -> torch.Generator:
    """A CPU generator for that purpose; what it draws is moved to the device, so that all devices draw alike."""
    return torch.Generator().manual_seed(derive(seed, round_, purpose))
