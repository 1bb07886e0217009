"""`python -m ulsam_fused`: the same as the script `ulsam-fused`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
