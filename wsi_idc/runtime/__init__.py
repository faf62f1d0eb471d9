"""Use of the computer: cores, device and precision, signals, distributed training, prefetching."""
