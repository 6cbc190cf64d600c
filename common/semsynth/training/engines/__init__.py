"""Trainers: the steps that MONAI's lack."""
