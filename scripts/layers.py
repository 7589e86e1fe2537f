#!/usr/bin/env python3
"""Checks what src/lib.rs says of the house. Its modules stand there in floors, an empty line between two of them. A module imports
only what is on its own floor or below, and neither modules nor files import each other in a circle. A file may use what the mod.rs of
its own folder has, as children do everywhere in Rust.

    scripts/layers.py            the crate in src
    scripts/layers.py FOLDER     another one, to try the check itself
"""

import os
import re
import sys


def module_of(path):
    """("broker", "memory") of broker/memory/mod.rs."""
    parts = path.removesuffix(".rs").split(os.sep)
    return tuple(parts[:-1] if parts[-1] == "mod" else parts)


# What must be read as one piece: raw texts, texts, characters, comments.
PIECES = re.compile(
    r'''b?r(#*)".*?"\1|b?"(?:\\.|[^"\\])*"|b?'(?:\\.[^']*|[^'\\])'|//[^\n]*|/\*.*?\*/''', re.S
)


def code_of(text):
    """Without comments, texts and unit tests, which may import whatever they need."""
    text = PIECES.sub("", text)
    text = re.sub(r"#\[cfg\(test\)\]\s*mod \w+;", "", text)
    return re.split(r"#\[cfg\(test\)\]\s*mod \w+ \{", text)[0]


def expanded(tree, prefix=()):
    """The paths of a `use`, its braces undone."""
    tree = re.sub(r"\s+as\s+\w+", "", tree.strip())
    braces = re.fullmatch(r"((?:\w+::)*)\{(.*)\}", tree, re.S)
    if not braces:
        return [prefix + tuple(part for part in tree.split("::") if part)] if tree else []
    prefix += tuple(part for part in braces[1].split("::") if part)
    paths, depth, current = [], 0, ""
    for char in braces[2] + ",":
        depth += (char == "{") - (char == "}")
        if char == "," and depth == 0:
            paths += expanded(current, prefix)
            current = ""
        else:
            current += char
    return paths


def imports(root):
    """Each module, and the modules that it imports from other files."""
    files = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.relpath(os.path.join(folder, name), root)
            if name.endswith(".rs") and path not in ("lib.rs", "main.rs"):
                files[module_of(path)] = os.path.join(folder, name)
    found = {}
    for module, path in files.items():
        if module[-1] == "tests":
            continue
        with open(path, encoding="utf-8") as file:
            code = code_of(file.read())
        paths = [one for use in re.findall(r"\buse\s+([^;]+);", code) for one in expanded(use)]
        code = re.sub(r"\buse\s+[^;]+;", "", code)
        paths += [tuple(one.split("::")) for one in re.findall(r"\b(?:crate|super|self)(?:::\w+)+", code)]
        children = {other[-1] for other in files if other[:-1] == module}
        found[module] = set()
        for used in paths:
            if used[0] == "crate":
                target = used[1:]
            elif used[0] == "self":
                target = module + used[1:]
            elif used[0] == "super":
                ups = next((i for i, part in enumerate(used) if part != "super"), len(used))
                target = module[: len(module) - ups] + used[ups:]
            elif used[0] in children:
                target = module + used
            else:
                continue
            named = next((target[:n] for n in range(len(target), 0, -1) if target[:n] in files), None)
            # Its own mod.rs, and those above, are its family.
            if named and named != module[: len(named)]:
                found[module].add(named)
    return found


def circles(found):
    """Groups of modules each of which leads to all others of its group."""
    reached = {}
    for start in found:
        seen, left = set(), list(found[start])
        while left:
            module = left.pop()
            if module not in seen:
                seen.add(module)
                left += found.get(module, ())
        reached[start] = seen
    groups = {
        frozenset(other for other in reached[module] if module in reached.get(other, ()))
        for module in found
        if module in reached[module]
    }
    return sorted(sorted(group) for group in groups)


def main():
    root = sys.argv[1] if len(sys.argv) > 1 else "src"
    with open(os.path.join(root, "lib.rs"), encoding="utf-8") as file:
        floors = re.split(r"\n\s*\n", file.read())
    floor = {name: n for n, text in enumerate(floors) for name in re.findall(r"^(?:pub )?mod (\w+);", text, re.M)}
    found = imports(root)
    wrong = []
    whole = {}
    for module, others in sorted(found.items()):
        whole.setdefault(module[:1], set()).update(other[:1] for other in others if other[0] != module[0])
        for other in sorted(others):
            if floor[other[0]] < floor[module[0]]:
                wrong.append(f"{'::'.join(module)} imports {'::'.join(other)}, which is above it in {root}/lib.rs")
    for group in circles(whole) + circles(found):
        wrong.append("these import each other: " + ", ".join("::".join(module) for module in group))
    for line in wrong:
        print(f"layers: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
