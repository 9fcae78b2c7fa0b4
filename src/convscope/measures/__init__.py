"""One file a measure: what a layer costs and sees."""
