"""PyTorch: a plain, unmodified training loop is a run; its losses, learning rates and model are recorded."""

from flavors.torch.flavor import TorchFlavor

__all__ = ["TorchFlavor"]
