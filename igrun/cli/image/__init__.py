"""`ig image ...`: one module per theme, imported when one of its commands is called."""

from __future__ import annotations

from igrun.cli.face import Lazy

COMMANDS = {
    "build": ("building", "Build the gadget of a folder"),
    "copy": ("moving", "Copy an image from one registry to another"),
    "export": ("archiving", "Write images of the local store into a tar"),
    "import": ("archiving", "Take images from a tar into the local store"),
    "inspect": ("inspecting", "Show what an image is for, what it holds and what it prints"),
    "list": ("listing", "List the images in the local store (also: ls)"),
    "prune": ("pruning", "Delete what no name leads to, or caches"),
    "pull": ("moving", "Take an image from a registry into the local store"),
    "push": ("moving", "Send an image of the local store to its registry"),
    "remove": ("listing", "Remove images from the local store (also: rm)"),
    "sign": ("trusting", "Sign an image with a private key"),
    "tag": ("listing", "Give an image another name"),
    "verify": ("trusting", "Verify the signature of an image"),
}

command = Lazy(
    "image",
    {name: about for name, (_, about) in COMMANDS.items()},
    {name: f"igrun.cli.image.{module}:{name}_" for name, (module, _) in COMMANDS.items()},
    {"ls": "list", "rm": "remove"},
    help="Build, move, sign, inspect and remove gadget images.",
)
