"""What a trunk is worth: the probes of lincls.py, and the features of the kNN monitor."""
