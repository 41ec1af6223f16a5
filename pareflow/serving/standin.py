"""In a bundle, what stands in for pydantic: settings as attributes, taken as they were when packaged.

They were validated then; here they are only read. The runner then needs no more than numpy and the runtime.
Standard library only: it is copied into bundles as `pydantic.py`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, get_origin, get_type_hints

_NONE_GIVEN = object()


class ValidationError(ValueError):
    """Never raised here."""

    def errors(self) -> list[dict[str, Any]]:
        return []


class FieldInfo:
    """A setting's default."""

    def __init__(self, default: Any, factory: Callable[[], Any] | None, description: str | None) -> None:
        self._default, self._factory, self.description = default, factory, description

    def value(self) -> Any:
        return self._factory() if self._factory else self._default

    @property
    def given(self) -> bool:
        return self._factory is not None or not (self._default is _NONE_GIVEN or self._default is ...)


def Field(
    default: Any = _NONE_GIVEN,
    *,
    default_factory: Callable[[], Any] | None = None,
    description: str | None = None,
    **bounds: Any,
) -> Any:
    return FieldInfo(default, default_factory, description)


PrivateAttr = Field


def ConfigDict(**settings: Any) -> dict[str, Any]:
    return settings


def _unchecked(*_: Any, **__: Any) -> Callable[[Any], Any]:
    """A decorator of a check that was made when the settings were."""
    return lambda function: function


model_validator = field_validator = field_serializer = model_serializer = _unchecked


class BaseModel:
    """A class whose annotated attributes are its settings."""

    model_fields: ClassVar[dict[str, FieldInfo]] = {}

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__()
        hints = vars(cls).get("__annotations__", {})
        own = {name: vars(cls).get(name, _NONE_GIVEN) for name in hints}
        found = {
            name: value if isinstance(value, FieldInfo) else FieldInfo(value, None, None)
            for name, value in own.items()
            if "ClassVar" not in str(hints[name]) and name != "model_config"
        }
        for name in found:
            if name in vars(cls):
                delattr(cls, name)  # instances hold the values
        inherited: dict[str, FieldInfo] = {}
        for base in reversed(cls.__mro__[1:]):
            inherited |= vars(base).get("model_fields", {})
        cls.model_fields = {**inherited, **found}
        cls.__pydantic_init_subclass__(**settings)

    @classmethod
    def __pydantic_init_subclass__(cls, **settings: Any) -> None: ...

    def __init__(self, **settings: Any) -> None:
        hints = _hints(type(self))
        for name, field in self.model_fields.items():
            if name in settings:
                setattr(self, name, _typed(settings[name], hints.get(name)))
            elif field.given:
                setattr(self, name, field.value())

    @classmethod
    def model_validate(cls, settings: Mapping[str, Any]) -> Self:
        return cls(**settings)

    def model_dump(self, **_: Any) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def model_copy(self, *, update: Mapping[str, Any] | None = None) -> Self:
        copy = type(self).__new__(type(self))
        copy.__dict__.update({**self.__dict__, **(update or {})})
        return copy


def _hints(cls: type) -> dict[str, Any]:
    try:
        return get_type_hints(cls)
    except NameError:  # of a name that only type checkers see
        return {}


def _typed(value: Any, hint: Any) -> Any:
    """What JSON cannot say: paths, tuples, and settings inside settings."""
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is tuple or get_origin(hint) is tuple:
        return tuple(value)
    if isinstance(hint, type) and issubclass(hint, BaseModel) and isinstance(value, Mapping):
        return hint(**value)
    return value


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    raise ImportError(
        f"a bundle stands in for the common part of pydantic, which `{name}` is not of: name pydantic in the "
        "workload's `serving_requires`, and the bundle asks for the real one"
    )
