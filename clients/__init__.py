"""The ClientApp of the Flower App."""
