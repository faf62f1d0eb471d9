"""How fast this machine does the work, and how much of its time goes into the network."""
