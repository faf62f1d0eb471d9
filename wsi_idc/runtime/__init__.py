"""CPU cores, device and precision, signals, distributed processes, prefetching."""
