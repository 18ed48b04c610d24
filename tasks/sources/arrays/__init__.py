"""Read the images of a user's ``.npz`` or HDF5 file of arrays.

- ``files`` reads the names, shapes and rows of the arrays in a file.
- ``names`` finds the arrays of images, labels and columns by their names.
- ``cells`` reads the labels and the other columns as text.
- ``pixels`` checks the arrays of images, chooses the scale of the pixels, and converts images.
- ``listing`` calls these modules, creates one item per image, and reads the image of an item.
"""
