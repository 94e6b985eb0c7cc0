"""All contact with Flower: messages, the two apps, the strategy, and grids to run them on."""
