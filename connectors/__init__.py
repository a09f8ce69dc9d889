"""One outside system per file, real and fake side by side."""
