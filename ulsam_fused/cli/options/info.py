"""The options of `ulsam-fused info`."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Versions, devices, the backend that a call takes on each device and why, and what can serve."
    parser.epilog = "examples:\n  ulsam-fused info\n  ulsam-fused info --json"
    parser.add_argument("--json", action="store_true", help="print a JSON object instead")
