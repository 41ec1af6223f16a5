"""Every family of techniques on real data: size, speed and quality, claimed against measured."""

from functools import partial
from pathlib import Path

import recipes
from claims import main

if __name__ == "__main__":
    main("techniques", partial(recipes.measure, Path(__file__).with_suffix(".yaml")))
