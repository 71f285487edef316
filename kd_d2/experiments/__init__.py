"""Several runs of train_net.py side by side, and what they leave behind."""
