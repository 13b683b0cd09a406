"Commands that readers are given: each names a command that there is, with flags that it has"
import json
import re
from functools import cache
from pathlib import Path

import pytest

from ivgr.tools.cli import COMMANDS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT/"README.md", ROOT/"CONTRIBUTING.md", *sorted((ROOT/"nbs").rglob("[!_.]*.ipynb"))]
COMMAND = re.compile(r"(?:^ *|`|\$ )ivgr ([a-z][a-z-]*)((?:[^\n`\\]|\\\n)*)", flags=re.M)

def written(path):
    "What a page's author wrote as text"
    text = path.read_text()
    if path.suffix == ".md":
        return text
    cells = json.loads(text)["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")

def commands(text):
    "Name and flags of each command in a text"
    found = []
    for name, words in COMMAND.findall(text):
        words = re.split(r"\s#\s", words)[0]
        found.append((name, re.findall(r"(?<=\s)--[\w-]+", words)))
    return found

@cache
def flags_of(parser):
    "Its own flags, and those of the commands below it"
    flags = set()
    for action in parser._actions:
        flags |= set(action.option_strings)
        if isinstance(action.choices, dict):
            flags = flags.union(*map(flags_of, action.choices.values()))
    return flags

@cache
def flags_of_command(name):
    return flags_of(COMMANDS[name].parser())

def mistakes(text):
    "Commands and flags that there are not"
    for name, flags in commands(text):
        if name not in COMMANDS:
            yield f"ivgr {name}"
        else:
            yield from (f"ivgr {name} {flag}" for flag in flags if flag not in flags_of_command(name))

@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_exist_with_their_flags(path):
    assert not list(mistakes(written(path)))

def test_mistakes_are_seen():
    text = "```sh\nivgr train --data x \\\n    --no_such 3  # --nor this\n```\nor `ivgr fly --high`, not `ivgr demo --seed 1`"
    assert list(mistakes(text)) == ["ivgr train --no_such", "ivgr fly"]
    assert sum(len(commands(written(path))) for path in PAGES) > 60
