"""MobileNet-V1 and MobileNet-V2 with ULSAM inserted or in place of blocks, as in the paper.

model = uf.models.mobilenet_v2(insert={17: 4})          # a ULSAM of 4 subspaces after layer 17
model = uf.models.mobilenet_v2(replace={14: 8, 17: 8})  # in place of layers 14 and 17
"""

from .mobilenet import MobileNet, mobilenet_v1, mobilenet_v2

__all__ = ["MobileNet", "mobilenet_v1", "mobilenet_v2"]
