"""The settings of a study: specs, fingerprints, and tables of models, datasets and recipes."""
