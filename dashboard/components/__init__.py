"""Building blocks of pages: shell, cards, grids, forms, and the states in which there is nothing to show."""
