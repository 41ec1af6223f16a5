"""The images, in a folder that brings members of its own."""

from . import rogues as rogues
from .images import Images


class RogueImages(Images):
    """The same images and the same network."""
