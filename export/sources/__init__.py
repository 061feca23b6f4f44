"""Where trained models come from: each module opens one kind and gives an `nn.Module`."""
