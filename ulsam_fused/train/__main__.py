"""`python -m ulsam_fused.train`.

Exit code 0 done, 2 an error in the request, the data or the disk, 143 stopped by SIGTERM or SIGHUP.
"""

import sys
from collections.abc import Sequence

from ..console.output import exit_code
from . import options


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code("ulsam_fused.train", lambda: _train(argv))


def _train(argv: Sequence[str] | None) -> int:
    args = options.parse(argv)
    from . import run  # imports PyTorch, for which --help does not wait

    return run.run(args)


if __name__ == "__main__":
    sys.exit(main())
