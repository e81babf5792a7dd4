# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a runtime's Python imports, for the runtime to contain: build_frozen.py ROOT CFFI [OUTPUT].

Without OUTPUT, print the extension modules' files. With it, write the C of the other modules: their
code, as Python's frozen modules, which nobody has to find in the file system. Runs when kvmchan is
built, by `python -I -S`, so that it sees only what embed.py imports.
"""

# What this imports is imported in every program, too: nothing that has a file.
import marshal
import sys

_DEPFILE = ".d"
_EXTENSION = ".so"


def imported() -> dict[str, str]:
    """Return the files of what embed.py and Python's start import, by module.

    What libpython itself contains has none.
    """
    import _cffi_backend  # type: ignore[import-untyped] # noqa: F401

    import libxenvchan_shim.embed  # noqa: F401

    found = {name: module.__spec__ for name, module in sys.modules.items() if module.__spec__ is not None}
    return {name: str(spec.origin) for name, spec in sorted(found.items()) if spec.has_location}


def code_of(name: str, path: str) -> bytes:
    """Return the module's code, as it is in a .pyc file, without docstrings."""
    with open(path, "rb") as file:  # noqa: PTH123 # pathlib would be imported
        source = file.read()
    return marshal.dumps(compile(source, f"<kvmchan {name}>", "exec", dont_inherit=True, optimize=2))


def write(modules: dict[str, str], output: str) -> None:
    """Write the C and, beside it, which files it was made of."""
    lines = ["/* SPDX-License-Identifier: LGPL-2.1-or-later */", '#include "runtime/frozen.h"']
    entries = []
    for number, (name, path) in enumerate(modules.items()):
        code = code_of(name, path)
        lines.append(f"static const unsigned char code_{number}[] = {{{','.join(map(str, code))}}};")
        is_package = int(path.endswith("__init__.py"))
        entries.append(f'{{.name = "{name}", .code = code_{number}, .size = {len(code)}, .is_package = {is_package}}},')
    lines += ["const struct _frozen frozen_modules[] = {", *entries, "{0}};", ""]
    with open(output, "w", encoding="ascii") as file:  # noqa: PTH123
        file.write("\n".join(lines))
    files = " ".join(path.replace(" ", "\\ ") for path in modules.values())
    with open(output + _DEPFILE, "w", encoding="utf-8") as file:  # noqa: PTH123
        file.write(f"{output.replace(' ', chr(92) + ' ')}: {files}\n")


def main(root: str, cffi: str, output: str = "") -> None:
    """Look for our modules in `root`, and for cffi's in `cffi`."""
    sys.path[:0] = [root]
    sys.path.append(cffi)
    found = imported()
    extensions = sorted(name for name, path in found.items() if path.endswith(_EXTENSION))
    if output:
        write({name: path for name, path in found.items() if name not in extensions}, output)
    else:
        print(*(found[name] for name in extensions), sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
