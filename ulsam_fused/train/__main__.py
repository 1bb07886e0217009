"""`python -m ulsam_fused.train`; exit code 0 done, 2 an error in the request or the data, 143 stopped by SIGTERM."""

import sys
from collections.abc import Sequence

from ..console.errors import UserError
from . import options, run


def main(argv: Sequence[str] | None = None) -> int:
    try:
        return run.run(options.parse(argv))
    except UserError as error:
        print(f"ulsam_fused.train: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ulsam_fused.train: interrupted; nothing was saved since the last checkpoint", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
