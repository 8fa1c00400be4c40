"""PyTorch side: loader, model, training, proposals and evaluation."""
