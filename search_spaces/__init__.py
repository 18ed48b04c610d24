"""What the study chooses: specs, fingerprints, tables of models, datasets and recipes, presets."""
