# SPDX-License-Identifier: LGPL-2.1-or-later
"""Frozen records: what dataclass(frozen=True) makes of a class, for messages.

The standard library's dataclasses imports inspect and what that needs, which took a third of the
time that the first libxenvchan call in a program takes. This is what messages need of it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, dataclass_transform
else:

    def dataclass_transform(**_options: object) -> Any:
        """Do what typing's does when a program runs: nothing."""
        return lambda cls: cls


@dataclass_transform(frozen_default=True)
class Record:
    """A frozen record, whose fields are its class's annotations, in order."""

    __slots__ = ()

    if not TYPE_CHECKING:

        def __init__(self, *values: Any, **named: Any) -> None:
            names = type(self).__annotations__
            if len(values) + len(named) != len(names):
                raise TypeError(f"{type(self).__name__} takes each of {', '.join(names)} once")
            fields = self.__dict__  # since our __setattr__ refuses
            fields.update(zip(names, values, strict=False))
            if named:
                fields.update(named)
                if fields.keys() != names.keys():
                    raise TypeError(f"{type(self).__name__} takes each of {', '.join(names)} once")

        def __setattr__(self, name: str, value: Any) -> None:
            raise AttributeError(f"{type(self).__name__}.{name} can't be set: a record is frozen")

    def as_dict(self) -> dict[str, Any]:
        """Return the values by their fields' names."""
        return {name: getattr(self, name) for name in type(self).__annotations__}

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and isinstance(other, Record) and self.as_dict() == other.as_dict()

    def __hash__(self) -> int:
        return hash((type(self), *self.as_dict().values()))

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in self.as_dict().items())
        return f"{type(self).__name__}({values})"
