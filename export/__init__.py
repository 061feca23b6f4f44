"""`tidegate export`: a trained PyTorch model becomes a verified version in a model repository."""
