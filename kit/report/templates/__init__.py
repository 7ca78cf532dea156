"""The report page: its markup, its style and its slide filter."""
