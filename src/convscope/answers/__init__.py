"""Questions every designer of a CNN is asked, answered by measurement: one file a question."""
