"""The plan of a sweep file: its trials, its folders and its estimated cost."""
