"""Level 1, the model: the interface of what changes a network."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from pareflow.catalog import TECHNIQUES, Member
from pareflow.network import Form
from pareflow.workload import LoadedWorkload


class Technique(Member, ABC):
    """A change of a network. One file per technique: frozen settings and one verb."""

    family: ClassVar[dict[str, type[Member]]] = TECHNIQUES
    form: ClassVar[Form]
    """What it changes: a torch `nn.Module`, an `onnx.ModelProto`, or an `openvino.Model`."""
    gives: ClassVar[Form]
    """What it makes of it: the same form, unless it says a later one."""
    measures: ClassVar[bool] = False
    """Whether timings decide what it makes. It keeps them in the scratch folder: the same seed and the same
    timings give the same bytes."""
    taking: ClassVar[tuple[str, ...]] = ()
    """The settings that decide nothing but what `takes` tells."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if "gives" not in vars(cls) and "form" in vars(cls):
            cls.gives = cls.form

    @abstractmethod
    def apply(self, network: Any, workload: LoadedWorkload) -> Any:
        """A new network, of the form that it `gives`; `network` is never changed in place.

        It may look at the workload's train, calibration and search splits; the verdict split is shut.
        Raises: VariantError, InputError.
        """

    def takes(self, network: Any, workload: LoadedWorkload) -> Any:
        """What goes of a network, as JSON; `network` is not changed. Two that take as much, and differ in
        `taking` alone, make the same network. None where that is not known before it is applied.

        Raises: as `apply`.
        """
        return None
