"""Random numbers as functions of where they are needed, so that none of their state has to be saved."""

import hashlib


def derive(*place: int | str) -> int:
    """A seed for the place, such as (seed, "image", epoch, index): the same everywhere, in 0 … 2⁶³ - 1."""
    digest = hashlib.blake2b(repr(place).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
