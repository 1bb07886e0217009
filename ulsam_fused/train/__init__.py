"""Training on folders of images: `python -m ulsam_fused.train --data DIR`, alone or under torchrun.

Needs Pillow, and TensorBoard for its logs: pip install 'ulsam_fused[train]'. docs/training.md has the recipes.
"""
