"""The job file of the smallest search: one trial of one epoch."""

ONE_TRIAL = """
command = "search"
name = "one"
[config]
model = "cnn"
epochs = 1
batch_size = 32
split = "ratio:50/25/25"
[axes]
learning_rate = [1e-3]
"""
