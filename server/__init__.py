"""The ServerApp of the Flower App."""
