"""``d3pm-fast train``: a denoiser for Fashion-MNIST, trained with this library's loss."""
