"""Read a user's images that lie in one folder per class.

``<raw>`` is the folder or archive that the user gives. In the default layout, ``class/group``,
the path of an image is ``<raw>/<class>/image.png``, as in torchvision's ``ImageFolder`` and
timm's folder reader. Images are pictures or DICOM files. A DICOM file that is not in an
archive needs no extension.

- Groups: all images in a subfolder of a class, ``<raw>/<class>/<group>/image.png``, are one
  group. Images in deeper folders belong to the same group. Equal group names in different
  classes are one group. A folder called ``images`` is not a group (Tiny ImageNet has such
  folders).
- Layout ``group/class``: the groups are above the classes,
  ``<raw>/<group>/<class>/image.png``. The user's option ``layout`` chooses the layout. Without
  this option, isweep checks three conditions: all images lie in subfolders, the subfolders
  have 2 to 20 different names, and each name occurs in several top folders. If all conditions
  hold, the patient ids in DICOM headers decide between the layouts. Otherwise the layout is
  ``class/group``.
- Splits: ``<raw>/train/<class>/...`` and ``<raw>/test/<class>/...``. Images in a folder ``val``
  beside them are left out. The record of the dataset contains their number.
- Masks are left out. The record of the dataset contains their number. There are three kinds of
  masks: files in a folder called ``masks`` (COVID-19 Radiography Database), files beside their
  image (BUSI has ``x_mask.png`` beside ``x.png``), and files below a class of masks
  (``cats_mask`` beside ``cats``).
- Classes with unusual names: the table shows whether such a folder is a class. If the user's
  option ``label_map`` contains the name of the folder, it is always a class.

  ============================  =====================================  ======================
  Folder in place of a class    Default layout                         Layout ``group/class``
  ============================  =====================================  ======================
  ``masks``, ``segmentations``  no class, unless all images are in     no class
                                such folders
  ``mask``, ``segmentation``    class, unless ``images`` is beside it  no class
  ``images``                    class                                  no class
  ============================  =====================================  ======================

The modules use these terms:

- *Wrapper*: the folder that contains all classes or splits. If several nested folders each contain
  only the next one, together they are one wrapper.
- *Top folder*: the first folder of an image's path, after the wrapper and the split are
  removed. It is a class or a group, depending on the layout.
- *Inner archive*: an archive inside the archive ``<raw>``.
- *Name* of a file: its path below ``<raw>``, as if all archives were unpacked in place.
- *Locator* of a file: its stored address, in which ``!/`` separates an archive from the path
  in it: ``raw.zip!/cats/1.png``.

Each step has its own module:

- ``scan`` finds the images to use. It calls ``inner_archives`` and ``masks``.
- ``upper_folders`` finds the wrapper and the splits.
- ``paths`` divides the path of an image into its folders.
- ``split_checks`` refuses splits inside the class folders, or with unusual names.
- ``layout`` decides whether the top folders are classes or groups.
- ``listing`` calls these steps and makes the listing.
"""
