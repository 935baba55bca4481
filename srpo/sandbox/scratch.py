"""A program's scratch folder on disk: how full it is, and its removal, whatever the program made of it.

The untrusted side loads this file too, so it imports nothing of the trusted side.
"""

from __future__ import annotations

import os
from itertools import count


def used(folder: str, enough: int) -> int:
    """Bytes that the files below a folder take up on disk, a page at least for each; stops counting at `enough`."""
    total, folders = 0, [folder]
    while folders and total <= enough:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    total += max(entry.stat(follow_symlinks=False).st_blocks * 512, 4096)
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
        except FileNotFoundError:                             # the program is at work
            continue
        except OSError:                                       # paths too long, folders made unreadable: no honest use
            return enough + 1
    return total


def remove_tree(folder: str) -> None:
    """Remove a folder, however deep it is and whatever the modes in it. Folders in it are moved up to its parent."""
    parent, number = os.path.dirname(folder), count()
    folders = [folder]
    while folders:
        path = folders.pop()
        os.chmod(path, 0o700)
        with os.scandir(path) as entries:
            for entry in list(entries):
                if entry.is_dir(follow_symlinks=False):
                    os.chmod(entry.path, 0o700)
                    folders.append(os.path.join(parent, f"{os.path.basename(folder)}-{next(number)}"))
                    os.rename(entry.path, folders[-1])
                else:
                    os.remove(entry.path)
        os.rmdir(path)
