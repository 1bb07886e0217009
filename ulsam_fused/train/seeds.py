"""Seeds derived from the place where random numbers are needed, so that no random state has to be saved."""

import hashlib


def derive(*place: int | str) -> int:
    """A seed for the place, such as (seed, "view", epoch, number): the same on every machine, in 0 … 2⁶³ - 1."""
    digest = hashlib.blake2b(repr(place).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
