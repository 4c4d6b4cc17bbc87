"""Networks: one file for each family, plus the layers that they share."""
