"""The pre-training run of main_adco.py."""
