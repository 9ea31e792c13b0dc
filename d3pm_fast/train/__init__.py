"""The command ``d3pm-fast``: a denoiser for Fashion-MNIST, its training, samples and bound."""
