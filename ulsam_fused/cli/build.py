"""`ulsam-fused build`: compiles the C++ backend ahead of its first use, for images and machines without a compiler."""

import argparse
import time

from ..console.errors import UserError
from ..kernels.cpu import build


def run(args: argparse.Namespace) -> int:
    start = time.monotonic()
    try:
        library = build.build(args.into)
    except build.BuildError as error:
        raise UserError(str(error)) from None
    print(f"C++ kernels: {library} ({time.monotonic() - start:.0f} s)")
    return 0
