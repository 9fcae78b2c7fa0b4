"""Being written by the helper on filter-size, locally-connected, text-channels and features."""
