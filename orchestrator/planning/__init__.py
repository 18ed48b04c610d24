"""From a sweep file to a plan: its trials, its folders and its estimated cost."""
