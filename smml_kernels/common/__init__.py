"""What the operations share: launching kernels, tiles, targets and sums over ranks."""
