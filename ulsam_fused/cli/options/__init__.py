"""The options of each command, in a module of its name. None imports PyTorch, so that `--help` is quick."""
