"""MEAL: which image patches to label next."""
