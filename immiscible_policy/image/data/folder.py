"""Any folder of images, or a zip of one: flat, or with a folder for every class.

Prompts are the names of the class folders, with underscores as spaces; a flat folder has none.
"""

from __future__ import annotations

from pathlib import Path

from immiscible_policy.image.data.files import Dataset, Listing, Zip, in_turn, open_source

WANTED = "it should be a folder (or a zip of one) of .jpg or .png images, flat or as CLASS/NAME.jpg"


def list_folder(path: Path, split: str) -> Listing:
    """All images: of a flat folder in the order of their names, of class folders the classes in turn.

    Raises:
        ValueError: If there are none, or not all lie alike.
    """
    source = open_source(path, WANTED)
    tops = {file.name.partition("/")[0] for file in source.images("")} if isinstance(source, Zip) else set()
    around = tops.pop() if len(tops) == 1 else ""  # the folder that a zip was made of, if it is in the zip
    within = around if source.has(around) else ""
    files = in_turn(source.images(within))
    if not files:
        raise ValueError(f"{path} holds no images; {WANTED}")
    highest, deepest = (choose(files, key=lambda file: file.depth) for choose in (min, max))
    if deepest.depth > 1 or deepest.depth != highest.depth:
        raise ValueError(f"{path} holds {highest.name} and {deepest.name}; {WANTED}")
    classes = [file.class_name.replace("_", " ") for file in files]
    return Listing(source, within, files, classes if all(classes) else None)


FOLDER = Dataset("a folder", ("train",), WANTED, list_folder, size=None)
