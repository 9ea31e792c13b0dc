"""``d3pm-fast``: denoisers for images and text, trained with this library's loss."""
