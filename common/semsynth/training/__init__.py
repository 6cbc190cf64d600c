"""Training that can be stopped, resumed and traced."""
